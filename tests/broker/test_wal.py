"""The write-ahead log by itself: what is read again of what was written, torn, damaged or left over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zq.broker.wal import BLOCK_BYTES, LogDamaged, WriteAheadLog, make_log

TAG, OTHER = b"a" * 16, b"b" * 16
SIZE_BYTES = 16 * BLOCK_BYTES


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteAheadLog]:
    make_log(tmp_path / "log", SIZE_BYTES)
    opened = WriteAheadLog(tmp_path / "log")
    opened.begin(TAG)
    yield opened
    opened.close()


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_records_are_read_in_order_and_those_of_other_rounds_are_not(log: WriteAheadLog) -> None:
    payloads = [b"", b"x" * 10, os.urandom(BLOCK_BYTES), b"\0" * (2 * BLOCK_BYTES), b"last"]
    assert all(log.append(payload) for payload in payloads)
    assert list(log.read(TAG)) == payloads
    log.begin(OTHER)
    assert log.empty
    assert list(log.read(OTHER)) == []
    log.append(b"new")
    assert list(log.read(OTHER)) == [b"new"]


def test_what_does_not_fit_is_not_begun(log: WriteAheadLog) -> None:
    assert not log.append(bytes(SIZE_BYTES))
    assert log.empty
    written = 0
    while log.append(b"x"):
        written += 1
    assert written == SIZE_BYTES // BLOCK_BYTES
    assert len(list(log.read(TAG))) == written
    assert log.half_full


@pytest.mark.parametrize("at", [0, 16, 20, 24, 28, 100, BLOCK_BYTES + 5])
def test_the_last_record_may_be_torn(log: WriteAheadLog, tmp_path: Path, at: int) -> None:
    log.append(b"first")
    log.append(b"y" * (2 * BLOCK_BYTES))
    change(tmp_path / "log", BLOCK_BYTES + at, b"\xff")
    assert list(log.read(TAG)) == [b"first"]


@pytest.mark.parametrize("at", [0, 16, 20, 24, 29, BLOCK_BYTES + 5])
def test_a_record_that_was_told_of_and_cannot_be_read_is_refused(
    log: WriteAheadLog, tmp_path: Path, at: int
) -> None:
    log.append(b"y" * (2 * BLOCK_BYTES))
    log.append(b"second")
    change(tmp_path / "log", at, b"\xff")
    with pytest.raises(LogDamaged):
        list(log.read(TAG))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3 * BLOCK_BYTES), cut=st.integers(0, 3 * BLOCK_BYTES))
@example(data=TAG + b"\0\0\0\0\xff\xff\xff\xff" + bytes(40), cut=0)
@example(data=b"", cut=5)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, cut: int) -> None:
    path = tmp_path / "log"
    make_log(path, SIZE_BYTES)
    log = WriteAheadLog(path)
    log.begin(TAG)
    log.append(b"one")
    log.append(b"two" * 2000)
    change(path, cut, data)
    os.truncate(path, SIZE_BYTES - cut)
    try:
        found = list(log.read(TAG))
    except LogDamaged:
        found = []
    finally:
        log.close()
    assert all(payload in (b"one", b"two" * 2000) for payload in found)

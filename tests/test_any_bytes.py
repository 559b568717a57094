"""Files that people write or disks damage: whatever stands in them is read or is one typed error, soon."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.broker.harness import Harness
from zq.broker.journal import Notes, Step
from zq.broker.log_entry import UNREADABLE, decode_entry, encode_entry
from zq.config import ConfigError, load
from zq.keys import BadKey, load_authorized, load_key_file, new_key
from zq.web.tokens import BadToken, list_tokens, new_token

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECONDS_MAX = 2.0
ERRORS = (ConfigError, BadKey, BadToken)

Place = tuple[Path, Callable[[], object]]
"""A file, and what reads it."""


def configuration(folder: Path) -> Place:
    path = folder / "zq.toml"
    path.write_text('[broker]\nbind = "tcp://127.0.0.1:5570"\n[queues.q]\nslots = 2\n')

    def read() -> object:
        with contextlib.suppress(ConfigError):
            load(path, {})
        # A value from the environment is put into whatever the file has there.
        return load(path, {"ZQ_BROKER_BIND": "tcp://127.0.0.1:1", "ZQ_WEB_PORT": "80", "ZQ_DATA_DIR": "x"})

    return path, read


def key(folder: Path) -> Place:
    path = new_key(folder, "a", "worker")
    return path, lambda: load_key_file(path)


def authorized(folder: Path) -> Place:
    new_key(folder, "a", "worker")
    return folder / "authorized/a.toml", lambda: load_authorized(folder)


def token(folder: Path) -> Place:
    new_token(folder, "a", ["read"])
    return folder / "a.toml", lambda: list_tokens(folder)


EACH = pytest.mark.parametrize("place", [configuration, key, authorized, token])


def soon(path: Path, read: Callable[[], object], data: bytes) -> None:
    path.write_bytes(data)
    begun_s = time.process_time()
    with contextlib.suppress(*ERRORS):
        read()
    assert time.process_time() - begun_s < SECONDS_MAX


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """With some bytes changed, and perhaps cut short."""
    copy = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        copy[data.draw(st.integers(0, len(copy) - 1))] = data.draw(st.integers(0, 255))
    return bytes(copy[: data.draw(st.integers(0, len(copy)))] if data.draw(st.booleans()) else copy)


@EACH
@pytest.mark.parametrize(
    "data",
    [
        b"a = " + b"[" * 5_000, b"[a" + b".a" * 5_000 + b"]", b"\xff\xfe", b"broker = 3", b"broker = [1]",
        b"[[broker]]", b"queues = 1", b"[queues]\nq = 2",
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_what_is_awkward_is_one_error(place: Callable[[Path], Place], data: bytes, tmp_path: Path) -> None:
    path, read = place(tmp_path)
    path.write_bytes(data)
    with pytest.raises(ERRORS):
        read()


@EACH
@FEW
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))))
@example(data=b"")
def test_any_bytes_are_read_or_one_error(place: Callable[[Path], Place], data: bytes, tmp_path: Path) -> None:
    soon(*_once(place, tmp_path), data)


@EACH
@FEW
@given(data=st.data())
def test_a_damaged_file_is_read_or_one_error(
    place: Callable[[Path], Place], data: st.DataObject, tmp_path: Path
) -> None:
    path, read = _once(place, tmp_path)
    whole = path.with_name("whole")
    if not whole.exists():
        read()
        whole.write_bytes(path.read_bytes())
    soon(path, read, damaged(data, whole.read_bytes()))


_PLACES: dict[Path, Place] = {}


def _once(place: Callable[[Path], Place], folder: Path) -> Place:
    """One folder serves all examples of a test: keys are made but once in it."""
    if folder not in _PLACES:
        _PLACES[folder] = place(folder)
    return _PLACES[folder]


@FEW
@given(data=st.data())
def test_a_damaged_commit_of_the_log_is_read_or_one_error(data: st.DataObject) -> None:
    zq = Harness()
    row = zq.row(zq.submit("a", key="k", tags=("gpu",)))
    whole = encode_entry([Step(None, row, b"spec")] * 3, 5, Notes({"fact": b"1"}))
    assert len(decode_entry(whole).steps) == 3
    with contextlib.suppress(*UNREADABLE):
        decode_entry(damaged(data, whole))
    with contextlib.suppress(*UNREADABLE):
        decode_entry(data.draw(st.binary(max_size=100)))

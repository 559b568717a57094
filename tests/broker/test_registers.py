"""Registers: kept over restarts, changed by compare-and-set, bounded."""

from __future__ import annotations

import pytest

import zq.protocol.messages as m
from tests.broker.harness import Harness
from zq.protocol import codec, limits
from zq.protocol.errors import Code


@pytest.fixture
def zq() -> Harness:
    return Harness()


def write(zq: Harness, name: str, revision: int, value: bytes) -> m.RegisterSet:
    return zq.ask(m.RegisterSet, m.SetRegister(0, 1, name, revision, value))


def read(zq: Harness, prefix: str = "") -> list[m.Register]:
    return zq.ask(m.Registers, m.AskRegisters(0, 1, prefix)).registers


def test_a_register_is_kept_over_restarts(zq: Harness) -> None:
    assert write(zq, "b:1", 1, b"x").done
    assert write(zq, "a:2", 1, b"y").done
    zq.restart()
    assert read(zq) == [m.Register("a:2", 1, b"y"), m.Register("b:1", 1, b"x")]
    assert read(zq, "b:") == [m.Register("b:1", 1, b"x")]


@pytest.mark.parametrize(("revision", "value", "done"), [(1, b"z", False), (2, b"z", True), (3, b"z", False)])
def test_only_the_next_revision_is_written(zq: Harness, revision: int, value: bytes, done: bool) -> None:
    write(zq, "r", 1, b"x")
    answer = write(zq, "r", revision, value)
    kept = m.Register("r", revision, value) if done else m.Register("r", 1, b"x")
    assert answer == m.RegisterSet(answer.request, kept, done)
    assert read(zq) == [kept]


def test_the_first_revision_is_1_and_the_same_order_again_is_done(zq: Harness) -> None:
    assert write(zq, "r", 2, b"x") == m.RegisterSet(1, m.Register("r", 0, b""), False)
    assert write(zq, "r", 1, b"x").done
    assert write(zq, "r", 1, b"x").done
    assert read(zq) == [m.Register("r", 1, b"x")]


def test_the_number_of_registers_is_bounded_and_they_fit_into_one_frame(zq: Harness) -> None:
    for number in range(limits.REGISTERS_MAX):
        assert write(zq, f"{number:𠮷>{limits.NAME_CHARS_MAX}}", 1, bytes(limits.REGISTER_BYTES_MAX)).done
    assert zq.ask(m.Refusal, m.SetRegister(0, 1, "one-more", 1, b"")).code is Code.BUSY
    all_of_them = read(zq)
    assert len(all_of_them) == limits.REGISTERS_MAX
    assert len(codec.encode(m.Registers(1, all_of_them))) < limits.FRAME_BYTES_MAX
    assert write(zq, all_of_them[0].name, 2, b"").done

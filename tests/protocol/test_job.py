from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.protocol.job import (
    ENDED,
    LIVE,
    TRANSITIONS,
    Cause,
    IllegalTransition,
    State,
    check_transition,
    format_id,
    job_id_from,
    new_job_id,
    parse_id,
)

ALL_STEPS = list(itertools.product([None, *State], Cause, State))


def test_every_step_is_legal_exactly_if_the_table_has_it() -> None:
    legal = 0
    for before, cause, after in ALL_STEPS:
        if after in TRANSITIONS.get((before, cause), ()):
            check_transition(before, cause, after)
            legal += 1
        else:
            with pytest.raises(IllegalTransition):
                check_transition(before, cause, after)
    assert legal == sum(len(states) for states in TRANSITIONS.values())


def test_done_is_for_ever_and_every_other_state_can_be_left() -> None:
    left = {before for before, _ in TRANSITIONS}
    assert State.DONE not in left
    assert left == {None, *State} - {State.DONE}


def test_states_are_live_or_ended() -> None:
    assert set(State) == LIVE | ENDED
    assert not LIVE & ENDED


def test_new_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(uuid.UUID(bytes=i).version == 7 for i in ids)
    assert [i[:6] for i in ids] == sorted(i[:6] for i in ids)


def test_ids_from_the_same_parts_are_the_same() -> None:
    assert job_id_from("tick", "a", "1") == job_id_from("tick", "a", "1")
    assert job_id_from("tick", "a", "1") != job_id_from("tick", "a1", "")
    assert uuid.UUID(bytes=job_id_from("x")).version == 8


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_read_as_it_was_written(job_id: bytes) -> None:
    assert parse_id(format_id(job_id)) == job_id
    assert parse_id(job_id.hex().upper()) == job_id


@given(st.text(max_size=40))
def test_any_text_is_an_id_or_a_value_error(text: str) -> None:
    try:
        job_id = parse_id(text)
    except ValueError:
        return
    assert len(job_id) == 16

"""The session as a table of events: no socket, no clock, no waiting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.client.session import (
    ANSWERS,
    GREET_S,
    GREET_S_MAX,
    PROBE_S,
    RESEND_S,
    WAIT_PROBE_S,
    Answered,
    ClientSession,
    Effect,
    GivenUp,
    Phase,
    Question,
    Reopen,
    Send,
)
from zq.exceptions import Refused
from zq.protocol import codec, limits, messages
from zq.protocol.errors import Code
from zq.protocol.job import State
from zq.protocol.messages import BrokerMessage, Role

ASK = messages.AskQueues(0, 0)
WAIT = messages.Wait(0, 0, bytes(16), 60_000)
SUBMIT = messages.Submit(0, 0, [b"job"])


def new_session() -> ClientSession:
    return ClientSession(Role.SUBMITTER, "me", bytes(16), "zq/test", spread=0.0)


def ask(
    session: ClientSession,
    question: Question = ASK,
    now_s: float = 0.0,
    deadline_s: float = 10.0,
    patience_s: float = 10.0,
) -> tuple[int, list[Effect]]:
    return session.ask(question, now_s, deadline_s, patience_s)


def hear(session: ClientSession, message: BrokerMessage, now_s: float = 0.0) -> list[Effect]:
    return session.receive(codec.encode(message), now_s)


def welcome(session: ClientSession, number: int = 7, now_s: float = 0.0) -> list[Effect]:
    return hear(session, messages.Welcome(number, 1, 1, 2000, 15_000), now_s)


def sent(effects: list[Effect]) -> list[Any]:
    return [codec.decode_from_peer(effect.frame) for effect in effects if isinstance(effect, Send)]


def ready_session(question: Question = ASK, now_s: float = 0.0) -> tuple[ClientSession, int]:
    """A session that is welcomed and has asked one question."""
    session = new_session()
    request, _ = ask(session, question, now_s, now_s + 100, 100)
    welcome(session, now_s=now_s)
    return session, request


def test_the_first_question_opens_a_socket_and_says_hello() -> None:
    session = new_session()
    _, effects = ask(session)
    assert isinstance(effects[0], Reopen)
    (hello,) = sent(effects)
    assert isinstance(hello, messages.Hello)
    assert (hello.role, hello.instance) == (Role.SUBMITTER, "me")


def test_questions_go_out_with_the_welcome_and_carry_its_session() -> None:
    session = new_session()
    first, _ = ask(session)
    second, effects = ask(session, SUBMIT)
    assert effects == []
    said = sent(welcome(session, 7))
    assert [(one.session, one.request) for one in said] == [(7, first), (7, second)]


def test_an_answer_answers_its_question_once() -> None:
    session, request = ready_session()
    answer = messages.Queues(request, [])
    assert hear(session, answer) == [Answered(request, answer)]
    assert hear(session, answer) == []
    assert session.waiting == 0
    assert session.next_wake_s() is None


def test_a_restarted_broker_is_greeted_and_asked_again_with_the_same_ids() -> None:
    session, request = ready_session(SUBMIT)
    effects = hear(session, messages.Refusal(request, Code.UNKNOWN_SESSION, ""))
    (hello,) = sent(effects)
    assert isinstance(hello, messages.Hello)
    assert not any(isinstance(effect, Reopen) for effect in effects)
    (again,) = sent(welcome(session, 8))
    assert (again.session, again.request, again.jobs) == (8, request, [b"job"])


def test_several_refusals_of_one_lost_session_are_one_hello() -> None:
    session, first = ready_session()
    second, _ = ask(session)
    assert len(sent(hear(session, messages.Refusal(first, Code.UNKNOWN_SESSION, "")))) == 1
    assert hear(session, messages.Refusal(second, Code.UNKNOWN_SESSION, "")) == []
    assert len(sent(welcome(session, 8))) == 2


def test_a_broker_that_greets_and_does_not_know_us_is_not_asked_in_a_tight_loop() -> None:
    session, request = ready_session()
    hellos = 0
    for number in range(100):
        effects = hear(session, messages.Refusal(request, Code.UNKNOWN_SESSION, ""), 0.001 * number)
        hellos += len(sent(effects))
        welcome(session, 8 + number, 0.001 * number)
    assert hellos <= 2


def test_an_unanswered_hello_is_said_on_a_new_socket_with_growing_patience() -> None:
    session = new_session()
    ask(session, deadline_s=1000.0, patience_s=1000.0)
    opened = [0.0]
    now_s = 0.0
    while now_s < 30:
        wake_s = session.next_wake_s()
        assert wake_s is not None
        assert wake_s > now_s
        now_s = wake_s
        if any(isinstance(effect, Reopen) for effect in session.tick(now_s)):
            opened.append(now_s)
    gaps = [later - sooner for sooner, later in itertools.pairwise(opened)]
    assert gaps[:3] == [GREET_S, 2 * GREET_S, 4 * GREET_S]
    assert set(gaps[3:]) == {GREET_S_MAX}


def test_silence_when_ready_is_probed_then_answered_by_a_new_socket() -> None:
    session, _ = ready_session(now_s=0.0)
    assert sent(session.tick(PROBE_S - 0.01)) == []
    (probe,) = sent(session.tick(PROBE_S))
    assert isinstance(probe, messages.AskBroker)
    assert session.tick(PROBE_S + 0.5) == []
    effects = session.tick(2 * PROBE_S)
    assert isinstance(effects[0], Reopen)
    assert session.phase is Phase.GREETING


def test_an_answered_probe_keeps_the_socket_and_is_no_answer_to_anything() -> None:
    session, _ = ready_session(WAIT, now_s=0.0)
    now_s = 0.0
    for _ in range(20):
        now_s += WAIT_PROBE_S
        (probe,) = sent(session.tick(now_s))
        info = messages.BrokerInfo(probe.request, 1, 0, 0, 0, 0, 0, 0, 0, {}, True, "")
        assert hear(session, info, now_s) == []
    assert session.phase is Phase.READY
    assert session.waiting == 1


def test_a_question_that_a_living_broker_does_not_answer_is_asked_again() -> None:
    session, request = ready_session(SUBMIT)
    for tenth in range(1, int(RESEND_S * 10)):
        hear(session, messages.BrokerInfo(0, 1, 0, 0, 0, 0, 0, 0, 0, {}, True, ""), tenth / 10)
    (again,) = sent(session.tick(RESEND_S))
    assert isinstance(again, messages.Submit)
    assert again.request == request


def test_a_question_is_given_up_at_its_deadline() -> None:
    session = new_session()
    request, _ = ask(session, deadline_s=3.0)
    session.tick(2.9)
    assert session.tick(3.0)[0] == GivenUp(request, in_contact=False)
    assert session.next_wake_s() is None


def test_a_wait_is_given_up_in_contact_when_the_broker_was_there() -> None:
    session = new_session()
    request, _ = ask(session, WAIT, deadline_s=5.0, patience_s=5.0)
    welcome(session, now_s=0.1)
    for second in (2, 4):
        session.tick(second + 0.1)
        hear(session, messages.BrokerInfo(0, 1, 0, 0, 0, 0, 0, 0, 0, {}, True, ""), second + 0.1)
    assert session.tick(5.0) == [GivenUp(request, in_contact=True)]


@pytest.mark.parametrize(("wait_s", "in_contact"), [(0.05, True), (1.5, False)])
def test_a_wait_too_short_for_an_answer_says_nothing_about_the_broker(wait_s: float, in_contact: bool) -> None:
    session = new_session()
    request, _ = ask(session, WAIT, deadline_s=wait_s, patience_s=wait_s)
    welcome(session, now_s=0.0)
    session.tick(wait_s / 2)
    assert GivenUp(request, in_contact=in_contact) in session.tick(wait_s)


def test_a_long_wait_survives_broker_restarts_but_not_a_broker_that_is_away_too_long() -> None:
    session = new_session()
    request, _ = ask(session, WAIT, deadline_s=1000.0, patience_s=10.0)
    welcome(session, now_s=5.0)
    assert session.tick(12.0) != [GivenUp(request, in_contact=False)]
    session.tick(14.0)
    welcome(session, 8, now_s=14.5)
    effects: list[Effect] = []
    now_s = 14.5
    while not any(isinstance(effect, GivenUp) for effect in effects):
        now_s = session.next_wake_s() or 0.0
        effects = session.tick(now_s)
    assert now_s == pytest.approx(24.5)


@pytest.mark.parametrize("question", [WAIT, messages.AskEvents(0, 0, 0, wait_ms=60_000)])
def test_a_long_wait_of_an_impatient_client_lasts_while_the_broker_answers_probes(question: Question) -> None:
    session = new_session()
    request, _ = ask(session, question, deadline_s=50.0, patience_s=1.0)
    welcome(session, now_s=0.1)
    now_s, asked = 0.1, 0
    while now_s < 45:
        now_s = max(now_s + 0.01, session.next_wake_s() or 0.0)
        for message in sent(session.tick(now_s)):
            asked += isinstance(message, type(question))
            hear(session, messages.BrokerInfo(0, 1, 0, 0, 0, 0, 0, 0, 0, {}, True, ""), now_s)
        assert session.waiting == 1
    assert asked == 0
    session.forget(request)


def test_events_that_are_late_are_asked_for_again() -> None:
    session, request = ready_session(messages.AskEvents(0, 0, 7, wait_ms=10_000))
    asked: list[Any] = []
    for second in range(1, 17):
        hear(session, messages.BrokerInfo(0, 1, 0, 0, 0, 0, 0, 0, 0, {}, True, ""), second)
        asked += [(second, one.request) for one in sent(session.tick(second)) if isinstance(one, messages.AskEvents)]
    assert asked == [(15, request)]


def test_a_refusal_is_an_answer() -> None:
    session, request = ready_session()
    refusal = messages.Refusal(request, Code.FORBIDDEN, "no")
    assert hear(session, refusal) == [Answered(request, refusal)]


@pytest.mark.parametrize("code", [Code.VERSION, Code.FORBIDDEN, Code.INVALID, Code.MALFORMED])
def test_a_client_that_is_not_welcome_tells_everybody_and_tries_anew_with_the_next_question(code: Code) -> None:
    session = new_session()
    first, _ = ask(session)
    second, _ = ask(session)
    refusal = messages.Refusal(0, code, "no")
    assert hear(session, refusal) == [Answered(first, refusal), Answered(second, refusal)]
    assert session.phase is Phase.IDLE
    _, effects = ask(session)
    assert isinstance(effects[0], Reopen)


@pytest.mark.parametrize("code", [Code.BUSY, Code.STOPPING])
def test_a_hello_that_came_at_a_bad_time_is_said_again_later(code: Code) -> None:
    session = new_session()
    ask(session, deadline_s=100.0, patience_s=100.0)
    assert hear(session, messages.Refusal(0, code, "", 3000), 0.5) == []
    assert session.tick(3.4) == []
    assert isinstance(session.tick(3.5)[0], Reopen)


def test_submits_that_a_stopping_broker_refuses_are_for_the_next_one() -> None:
    session, request = ready_session(SUBMIT)
    receipt = messages.Receipt(bytes(16), messages.ReceiptStatus.REFUSED, code=Code.STOPPING)
    assert hear(session, messages.Receipts(request, [receipt])) == []
    session.tick(10.0)
    (again,) = sent(welcome(session, 8, 10.1))
    assert again.request == request


def test_another_kind_of_answer_is_counted_and_dropped() -> None:
    session, request = ready_session()
    assert hear(session, messages.Workers(request, [])) == []
    assert session.bad_frames == 1
    session, request = ready_session(SUBMIT)
    assert hear(session, messages.Receipts(request, [])) == []
    assert session.bad_frames == 1


def test_a_forgotten_question_has_no_answer() -> None:
    session, request = ready_session()
    session.forget(request)
    assert hear(session, messages.Queues(request, [])) == []
    assert session.next_wake_s() is None


def test_the_table_of_unanswered_questions_is_bounded_and_empties() -> None:
    session = new_session()
    big = messages.Submit(0, 0, [bytes(1 << 18)] * 3)
    asked = [ask(session, big)[0] for _ in range(limits.RESEND_BYTES_MAX // len(codec.encode(big)))]
    with pytest.raises(Refused, match="unanswered") as caught:
        ask(session, big)
    assert caught.value.code == Code.BUSY
    session.forget(asked[0])
    ask(session, big)


def test_a_question_that_no_frame_holds_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="frame"):
        ask(new_session(), messages.Submit(0, 0, [bytes(limits.FRAME_BYTES_MAX)]))


def test_goodbye_is_said_where_a_session_stands() -> None:
    session, _ = ready_session()
    assert sent(session.goodbye()) == [messages.Bye(7)]
    assert new_session().goodbye() == []


def test_every_question_has_an_answer() -> None:
    from typing import get_args

    assert set(get_args(Question)) == set(ANSWERS)


ANY_MESSAGE = st.sampled_from(
    [
        messages.Welcome(7, 1, 1, 2000, 15_000),
        messages.Queues(1, []),
        messages.Queues(2, []),
        messages.Refusal(0, Code.BUSY, ""),
        messages.Refusal(1, Code.UNKNOWN_SESSION, ""),
        messages.Refusal(2, Code.STOPPING, ""),
        messages.Refusal(0, Code.FORBIDDEN, ""),
        messages.Ended(1, bytes(16), State.DONE),
        messages.BeatOk(7),
    ]
)
EVENT = st.one_of(
    st.tuples(st.just("hear"), ANY_MESSAGE),
    st.tuples(st.just("bytes"), st.binary(max_size=40)),
    st.tuples(st.just("ask"), st.sampled_from([ASK, WAIT, SUBMIT])),
    st.tuples(st.just("pass"), st.floats(0.0, 4.0)),
    st.tuples(st.just("forget"), st.integers(1, 5)),
)


@given(st.lists(EVENT, max_size=60))
def test_whatever_happens_every_question_ends_once_and_time_never_stands_still(events: list[tuple[str, Any]]) -> None:
    session = new_session()
    now_s = 0.0
    asked: set[int] = set()
    ended: list[int] = []
    for kind, what in events:
        effects: list[Effect] = []
        if kind == "hear":
            effects = hear(session, what, now_s)
        elif kind == "bytes":
            effects = session.receive(what, now_s)
        elif kind == "ask":
            request, effects = ask(session, what, now_s, now_s + 20, 10)
            asked.add(request)
        elif kind == "pass":
            now_s += what
            effects = session.tick(now_s)
        else:
            asked.discard(what) if what not in ended else None
            session.forget(what)
        ended += [effect.request for effect in effects if isinstance(effect, Answered | GivenUp)]
    for _ in range(1000):
        wake_s = session.next_wake_s()
        if wake_s is None:
            break
        now_s = max(now_s + 0.001, wake_s)
        ended += [effect.request for effect in session.tick(now_s) if isinstance(effect, Answered | GivenUp)]
    assert sorted(ended) == sorted(asked)
    assert session.waiting == 0

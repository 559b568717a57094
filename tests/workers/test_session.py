"""The worker's session without a socket or a clock: its tables, its link to the broker, its idle hours."""

from __future__ import annotations

import pytest

from tests.workers.session_bench import HEARTBEAT_MS, TIMEOUT_MS, Bench, lease, of, one, spec
from zq.protocol import messages as m
from zq.protocol.errors import Code
from zq.protocol.job import Outcome, State
from zq.workers import session_io as io
from zq.workers.leases import STEPS, HeldLease, IllegalStep, LeaseBook, Phase, Step, make_result
from zq.workers.session import SLOTS_MAX, Session, Settings
from zq.workers.stages import WORK_STEPS, Push, Work
from zq.workers.uplink import BACKOFF_MS_MAX, HEARD_IN, HELLO_WAIT_MS, LINK_STEPS, Link, Turn

# ---------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("step", Step)
def test_leases_follow_the_table_and_nothing_else(phase: Phase, step: Step) -> None:
    book = LeaseBook()
    held = HeldLease(lease(1), "q", spec())
    held.result = make_result(held, Outcome.DONE)
    book.add(held)
    held.phase = phase
    if (phase, step) not in STEPS:
        with pytest.raises(IllegalStep):
            book.step(held, step)
        assert held.phase is phase
        assert 1 in book
        return
    book.step(held, step)
    after = STEPS[phase, step]
    assert (1 in book) == (after is not None)
    assert after is None or held.phase is after


def test_a_result_is_dropped_only_when_acked_or_lost() -> None:
    drops = {(phase, step) for (phase, step), after in STEPS.items() if after is None}
    assert {pair for pair in drops if pair[0] is Phase.ENDED} == {
        (Phase.ENDED, Step.ACKED),
        (Phase.ENDED, Step.ABANDON),
    }


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("turn", Turn)
def test_the_link_follows_its_table(link: Link, turn: Turn) -> None:
    bench = Bench()
    uplink = bench.session.uplink
    uplink.link = link
    if turn is Turn.RETRY:
        uplink.greet_if_due(bench.now_ms)
    elif turn is Turn.WELCOMED:
        uplink.welcome(m.Welcome(1, 1, 1, HEARTBEAT_MS, TIMEOUT_MS), bench.now_ms)
    else:
        uplink.lose("test", bench.now_ms, 0)
    assert uplink.link is LINK_STEPS.get((link, turn), link)


def test_the_work_ends_only_over_a_drain() -> None:
    assert {before for (before, _), after in WORK_STEPS.items() if after is Work.LEFT} == {
        Work.DRAINING,
        Work.HANDING_BACK,
    }
    assert (Work.WORKING, Push.TIME_UP) not in WORK_STEPS
    assert not any(before is Work.LEFT for before, _ in WORK_STEPS)


MESSAGES: list[m.BrokerMessage] = [
    m.Welcome(1, 1, 1, 1, 1), m.Receipts(0, []), m.Dispatch(1, 1, [lease(1)]), m.Acked(1, [1], []),
    m.Resumed(1, [], [1]), m.BeatOk(1), m.Held(1, False), m.Revoke(1, [1], m.RevokeReason.STALE),
    m.Ended(0, b"j" * 16, State.DONE), m.Queues(0, []), m.Jobs(0, []), m.Workers(0, []), m.Changed(0, []),
    m.Refusal(0, Code.UNKNOWN_SESSION, ""),
]  # fmt: skip


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_does_not_fit_the_link_is_counted_and_changes_nothing(link: Link, message: m.BrokerMessage) -> None:
    bench = Bench()
    bench.session.uplink.link = link
    if link in HEARD_IN.get(type(message), ()):
        return
    assert bench.session.handle(message, bench.now_ms) == []
    assert bench.session.uplink.link is link
    assert bench.session.ignored[type(message).__name__] == 1
    assert len(bench.session.book) == 0


@pytest.mark.parametrize("message", [x for x in MESSAGES if hasattr(x, "session") and not isinstance(x, m.Welcome)])
def test_another_sessions_messages_are_ignored(message: m.BrokerMessage) -> None:
    bench = Bench()
    bench.session_id = 41
    bench.welcome()
    bench.dispatch(lease(1))
    assert bench.session.handle(message, bench.now_ms) == []
    assert bench.session.ignored[type(message).__name__] == 1
    held = bench.session.book.get(1)
    assert held is not None
    assert held.phase is Phase.RUNNING


# ---------------------------------------------------------------------------------------------------- the link


def test_the_first_words_are_hello_then_resume_then_credit() -> None:
    bench = Bench(up=False)
    effects = bench.later(0)
    assert isinstance(effects[0], io.OpenLink)
    hello = one(m.Hello, effects)
    assert (hello.role, hello.instance, hello.incarnation) == (m.Role.WORKER, "w", b"i" * 16)
    assert hello.queues == [m.QueueSlots("q", 2)]
    assert hello.tasks == ["t"]
    bench.tell(io.SlotUp(1, "q"), io.SlotUp(2, "q"))
    sent = of(m.FromPeer, bench.welcome())
    assert sent == [m.Resume(1, []), m.Credit(1, [m.QueueSlots("q", 2)])]


def test_hello_without_an_answer_is_said_again_on_a_new_connection_with_growing_pauses() -> None:
    bench = Bench()
    bench.later(0)
    waits = []
    for _ in range(8):
        started_ms = bench.now_ms
        bench.now_ms = bench.session.wake_ms()
        assert of(io.CloseLink, bench.session.turn(bench.now_ms))
        assert bench.session.uplink.link is Link.CLOSED
        bench.now_ms = bench.session.wake_ms()
        effects = bench.session.turn(bench.now_ms)
        assert one(m.Hello, effects).incarnation == b"i" * 16
        waits.append(bench.now_ms - started_ms)
    assert HELLO_WAIT_MS <= waits[0] <= HELLO_WAIT_MS + 100
    assert all(wait <= 2 * BACKOFF_MS_MAX for wait in waits)
    assert waits[-1] > 5_000


def test_silence_costs_the_link_and_nothing_else() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    effects = []
    while bench.session.uplink.link is Link.READY:
        bench.now_ms = bench.session.wake_ms()
        effects += bench.session.turn(bench.now_ms)
    assert bench.now_ms == 1_000 + TIMEOUT_MS
    assert len(of(m.Beat, effects)) == TIMEOUT_MS // HEARTBEAT_MS
    assert not of(io.EndSlot, effects)
    assert one(m.Resume, bench.welcome()).leases == [m.LeaseClaim((1).to_bytes(16, "big"), 1, 1)]


def test_any_message_is_a_sign_of_life() -> None:
    bench = Bench()
    bench.welcome()
    for _ in range(20):
        bench.later(TIMEOUT_MS - 1)
        bench.tell(m.BeatOk(1))
    assert bench.session.uplink.link is Link.READY


def test_an_unknown_session_is_greeted_again_at_once() -> None:
    bench = Bench()
    bench.welcome()
    effects = bench.tell(m.Refusal(0, Code.UNKNOWN_SESSION, "say HELLO again"))
    assert of(io.CloseLink, effects)
    assert bench.session.wake_ms() - bench.now_ms <= 100


def test_two_workers_of_one_name_do_not_throw_each_other_out_all_the_time() -> None:
    bench = Bench()
    started_ms = bench.now_ms
    for _ in range(10):
        bench.welcome()
        bench.tell(m.Refusal(0, Code.UNKNOWN_SESSION, ""))
    assert bench.now_ms - started_ms > 10_000


def test_a_refused_hello_is_tried_again_slowly_and_told_loudly() -> None:
    bench = Bench()
    bench.later(0)
    effects = bench.tell(m.Refusal(0, Code.FORBIDDEN, "key 'x' may not serve q"))
    assert any("may not serve q" in say.text for say in of(io.Say, effects))
    assert bench.session.wake_ms() - bench.now_ms >= BACKOFF_MS_MAX // 2
    bench.now_ms = bench.session.wake_ms()
    assert of(m.Hello, bench.session.turn(bench.now_ms))


def test_a_beat_names_everything_that_is_not_acknowledged() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    bench.report(1)
    bench.tell(io.Sampled(2, m.Usage(cpu_ms=5)), io.Sampled(2, m.Usage(cpu_ms=3, processes=4)))
    beat = one(m.Beat, bench.later(HEARTBEAT_MS))
    usage = [m.LeaseUsage(2, m.Usage(cpu_ms=5, processes=4), HEARTBEAT_MS)]
    assert beat == m.Beat(1, 1, [1, 2], usage, [m.QueueSlots("q", 2)])


def test_idle_it_wakes_for_its_heartbeat_only() -> None:
    bench = Bench()
    bench.welcome()
    turns = 0
    until_ms = bench.now_ms + 60_000
    while bench.now_ms < until_ms:
        bench.now_ms = bench.session.wake_ms()
        turns += 1
        if of(m.Beat, bench.session.turn(bench.now_ms)):
            bench.tell(m.BeatOk(1))
    assert turns == 60_000 // HEARTBEAT_MS


@pytest.mark.parametrize("queues", [{}, {"q": SLOTS_MAX + 1}])
def test_a_worker_has_some_slots_and_not_too_many(queues: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one queue"):
        Session(Settings(instance="w", incarnation=b"i" * 16, queues=queues), 0)


def test_idle_in_a_large_fleet_it_beats_as_seldom_as_it_was_told_until_it_has_work() -> None:
    bench = Bench()
    bench.welcome()
    bench.later(HEARTBEAT_MS)
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    assert of(m.Beat, bench.later(HEARTBEAT_MS))
    asked_ms = bench.now_ms
    assert bench.session.wake_ms() == asked_ms + 10 * HEARTBEAT_MS
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    bench.later(5 * HEARTBEAT_MS)
    bench.dispatch(lease(1))
    assert bench.session.uplink.link is Link.READY, "the broker was not silent for too long"
    assert not of(m.Beat, bench.later(HEARTBEAT_MS - 1))
    assert one(m.Beat, bench.later(1)).leases == [1]
    assert bench.session.wake_ms() <= bench.now_ms + HEARTBEAT_MS


def test_idle_in_a_large_fleet_it_gives_up_a_broker_that_answers_three_beats_in_a_row_with_nothing() -> None:
    bench = Bench()
    bench.welcome()
    bench.later(HEARTBEAT_MS)
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    heard_ms = bench.now_ms
    while bench.session.uplink.link is Link.READY:
        bench.now_ms = bench.session.wake_ms()
        bench.session.turn(bench.now_ms)
    assert bench.now_ms == heard_ms + max(TIMEOUT_MS, 30 * HEARTBEAT_MS)

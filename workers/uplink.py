"""The link of a worker to its broker: greeting, session, silence, back-off. Pure; `Session` gives it news and time.

    CLOSED ──retry──► GREETING ──welcomed──► READY ──lost──► CLOSED
                          └───────lost────────────────────────┘
"""

from __future__ import annotations

import random
from enum import Enum
from logging import ERROR, INFO, WARNING

from zq.protocol import messages as m
from zq.protocol.errors import Code
from zq.protocol.messages import BrokerMessage
from zq.workers import session_io as io

HELLO_WAIT_MS = 1_000
"""The first HELLO of a row waits so long for its answer; each further one twice as long, up to BACKOFF_MS_MAX."""
BACKOFF_MS = 100
BACKOFF_MS_MAX = 5_000
IDLE_BEATS_MISSED = 3
"""So many answers to an idle worker's BEATs may be missing before the broker counts as silent."""


class Link(Enum):
    CLOSED = "closed"
    GREETING = "greeting"
    """HELLO is sent, WELCOME has not come."""
    READY = "ready"


class Turn(Enum):
    """What moves the link."""

    RETRY = "retry"
    WELCOMED = "welcomed"
    LOST = "lost"
    """No answer, silence, a refusal of the session, a message that is missing, or a broken connection."""


LINK_STEPS: dict[tuple[Link, Turn], Link] = {
    (Link.CLOSED, Turn.RETRY): Link.GREETING,
    (Link.GREETING, Turn.WELCOMED): Link.READY,
    (Link.GREETING, Turn.LOST): Link.CLOSED,
    (Link.READY, Turn.LOST): Link.CLOSED,
}
"""(link, turn) → link. A pair that is not here changes nothing: a second WELCOME, a break of a closed link."""

HEARD_IN: dict[type, frozenset[Link]] = {
    m.Welcome: frozenset({Link.GREETING}),
    m.Refusal: frozenset({Link.GREETING, Link.READY}),
    m.Dispatch: frozenset({Link.READY}),
    m.Acked: frozenset({Link.READY}),
    m.Resumed: frozenset({Link.READY}),
    m.BeatOk: frozenset({Link.READY}),
    m.Held: frozenset({Link.READY}),
    m.Revoke: frozenset({Link.READY}),
}
"""Messages that mean something to a worker, and when. All others are dropped and counted."""


class Uplink:
    def __init__(self, hello: m.Hello, now_ms: int) -> None:
        self._hello = hello
        self._jitter = random.Random(hello.incarnation)
        self._failures = 0
        self._retry_ms = now_ms
        self._answer_by_ms = now_ms
        self._forget(now_ms)
        self.link = Link.CLOSED

    def _forget(self, now_ms: int) -> None:
        self.session = 0
        self.dispatches_seen = 0
        self.beats = 0
        """Sent in this session."""
        self.beats_answered = 0
        self._heartbeat_ms = 1
        self._timeout_ms = 1
        self._idle_ms = 1
        self._idle = False
        """Whether the next BEAT is that of a worker without leases."""
        self._heard_ms = now_ms
        self._beat_ms = now_ms

    @property
    def ready(self) -> bool:
        return self.link is Link.READY

    def _move(self, turn: Turn) -> bool:
        after = LINK_STEPS.get((self.link, turn))
        if after is None:
            return False
        self.link = after
        return True

    def is_for_us(self, message: BrokerMessage) -> bool:
        """Whether the message means something now: its kind fits the link, and its session is the current one."""
        if self.link not in HEARD_IN.get(type(message), ()):
            return False
        return isinstance(message, m.Welcome) or getattr(message, "session", self.session) == self.session

    def heard(self, now_ms: int) -> None:
        self._heard_ms = now_ms

    def greet_if_due(self, now_ms: int) -> list[io.Effect]:
        if now_ms < self._retry_ms or not self._move(Turn.RETRY):
            return []
        self._answer_by_ms = now_ms + min(BACKOFF_MS_MAX, HELLO_WAIT_MS << min(self._failures, 8))
        return [io.OpenLink(), io.Send(self._hello)]

    def welcome(self, welcome: m.Welcome, now_ms: int) -> bool:
        """False when no HELLO was waiting for it."""
        if not self._move(Turn.WELCOMED):
            return False
        self.session = welcome.session
        self._heartbeat_ms = max(1, welcome.heartbeat_ms)
        self._timeout_ms = max(1, welcome.timeout_ms)
        self._idle_ms = self._heartbeat_ms
        self._beat_ms = now_ms + self._heartbeat_ms
        return True

    def silent_for_too_long(self, now_ms: int) -> str:
        """Why the link is to be given up now; empty while it is well."""
        if self.link is Link.GREETING and now_ms >= self._answer_by_ms:
            return "no answer to HELLO"
        if self.link is Link.READY and now_ms >= self._heard_ms + self._patience_ms:
            return f"the broker was silent for {self._patience_ms / 1000:g} s"
        return ""

    @property
    def _patience_ms(self) -> int:
        """A broker has no reason to speak between the beats of an idle worker."""
        return max(self._timeout_ms, IDLE_BEATS_MISSED * self._idle_ms) if self._idle else self._timeout_ms

    def busy(self, now_ms: int) -> None:
        """There are leases: beats are due as often as WELCOME said."""
        if self._idle:
            self._idle = False
            self._beat_ms = min(self._beat_ms, now_ms + self._heartbeat_ms)

    def lose(self, why: str, now_ms: int, kept: int) -> list[io.Effect]:
        """Close the link and try again after a while; `kept`: jobs and results that wait for it. Empty if closed."""
        if not self._move(Turn.LOST):
            return []
        base_ms = min(BACKOFF_MS_MAX, BACKOFF_MS << min(self._failures, 8))
        self._retry_ms = now_ms + int(base_ms * (0.5 + 0.5 * self._jitter.random()))
        self._failures += 1
        self._forget(now_ms)
        effects: list[io.Effect] = [io.CloseLink()]
        # Every failure of the first few, then every twelfth (about once in two minutes): loud, but no flood.
        if self._failures <= 3 or self._failures % 12 == 0:
            keeping = f"; {kept} jobs and results are kept" if kept else ""
            text = f"no session with the broker ({why}){keeping}; trying again (try {self._failures + 1})"
            effects.append(io.Say(WARNING, text))
        return effects

    def refused(self, refusal: m.Refusal, now_ms: int, kept: int) -> list[io.Effect]:
        detail = f"{refusal.code.value}: {refusal.detail}"
        if self.link is Link.READY and refusal.code is not Code.UNKNOWN_SESSION:
            return [io.Say(WARNING, f"the broker refused a message: {detail}")]
        if self.link is Link.READY or refusal.code in (Code.STOPPING, Code.BUSY):
            return self.lose(detail, now_ms, kept)
        # Tried again all the same: a key may be added, a broker upgraded. With the longest pause from the start.
        self._failures = max(self._failures, 6)
        return [io.Say(ERROR, f"the broker refuses this worker: {detail}"), *self.lose(detail, now_ms, kept)]

    def beat_answered(self, idle_ms: int) -> None:
        self.beats_answered += 1
        self._idle_ms = max(self._heartbeat_ms, idle_ms)
        # Not already at WELCOME: two processes under one name would throw each other out ten times a second.
        self._failures = 0

    def beat_due(self, now_ms: int) -> bool:
        return now_ms >= self._beat_ms

    def take_beat(self, now_ms: int, *, idle: bool, at_once: bool = False) -> bool:
        """Whether a BEAT is to be sent now; if so it is counted as sent. `idle`: there are no leases."""
        if not self.beat_due(now_ms) and not at_once:
            return False
        self._idle = idle
        self._beat_ms = now_ms + (self._idle_ms if idle else self._heartbeat_ms)
        self.beats += 1
        return True

    def take_dispatch(self, number: int) -> bool | None:
        """True: it is the next one, and counted as seen. False: seen before. None: one before it is missing."""
        if number <= self.dispatches_seen:
            return False
        if number != self.dispatches_seen + 1:
            return None
        self.dispatches_seen = number
        return True

    def wake_ms(self) -> int:
        if self.link is Link.CLOSED:
            return self._retry_ms
        if self.link is Link.GREETING:
            return self._answer_by_ms
        return min(self._beat_ms, self._heard_ms + self._patience_ms)

    def connected_text(self, welcome: m.Welcome, claimed: int) -> io.Say:
        claiming = f"; claiming {claimed} jobs again" if claimed else ""
        return io.Say(INFO, f"session {welcome.session} with the broker, epoch {welcome.epoch}{claiming}")

"""What a client does about its broker, decided without socket, clock or random: events in, effects out.

    IDLE ──ask──► GREETING ──WELCOME──► READY
      ▲              │  ▲                 │
      └──refused─────┘  └──silence, UNKNOWN_SESSION, STOPPING──┘

Every question stays in the table until it is answered, given up or forgotten, and is sent again with the same ids
after every WELCOME: the broker may have been restarted and know neither the session nor the question. All questions of
the protocol are safe to repeat.

A successful send means nothing (it may have gone into a dead connection), and a socket whose CURVE handshake was
refused never tries again by itself. So silence is answered by a new socket: after `GREET_S` without a WELCOME
(doubling up to `GREET_S_MAX`), or when READY, after a probe that nobody answered. A client with nothing to ask does
nothing at all.

The shell does what `Effect`s say, in their order, and calls `tick` at `next_wake_s()`.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

import msgspec

from zq.exceptions import Refused
from zq.protocol import codec, limits, messages
from zq.protocol.errors import Code, WireError
from zq.protocol.messages import BrokerMessage, PeerMessage

GREET_S: Final = 1.0
"""How long the first HELLO on a socket may go unanswered."""
GREET_S_MAX: Final = 5.0
PROBE_S: Final = 1.0
"""READY and an answer is due: after so long without a word the broker is asked for one; after as long again a new
socket is opened."""
WAIT_PROBE_S: Final = 2.0
"""The same when all questions wait for something to happen. Keeps the session alive too."""
RESEND_S: Final = 5.0
"""The broker speaks, but this question is unanswered: ask again. Longer than a slow disk takes."""

Question = (
    messages.Submit | messages.Cancel | messages.RetryEnded | messages.Wait | messages.AskQueues | messages.AskJobs
    | messages.AskJob | messages.AskWorkers | messages.AskBroker | messages.AskWhy | messages.AskEvents
    | messages.SetQueue | messages.Drop | messages.AskRegisters | messages.SetRegister
    | messages.AskHours
)  # fmt: skip
"""What may be asked. `session` and `request` are filled in here."""

ANSWERS: Final[dict[type, type]] = {
    messages.Submit: messages.Receipts,
    messages.Cancel: messages.Changed,
    messages.RetryEnded: messages.Changed,
    messages.Wait: messages.Ended,
    messages.AskQueues: messages.Queues,
    messages.AskJobs: messages.Jobs,
    messages.AskJob: messages.JobDetail,
    messages.AskWorkers: messages.Workers,
    messages.AskBroker: messages.BrokerInfo,
    messages.AskWhy: messages.Why,
    messages.AskEvents: messages.Events,
    messages.SetQueue: messages.QueueSet,
    messages.Drop: messages.Changed,
    messages.AskRegisters: messages.Registers,
    messages.AskHours: messages.Hours,
    messages.SetRegister: messages.RegisterSet,
}
"""Question → its one answer; REFUSAL answers any."""

_PROBE: Final = 0
"""The number of questions that are asked only to hear something; those of the table start at 1."""

_NOT_FOR_GOOD = frozenset({Code.BUSY, Code.STOPPING, Code.UNKNOWN_SESSION})
"""A HELLO refused with one of these is said again later."""


class Phase(Enum):
    IDLE = "idle"
    GREETING = "greeting"
    READY = "ready"


class Reopen(msgspec.Struct, frozen=True):
    """Close the socket if there is one, drop what waits to be sent, and connect a new one."""


class Send(msgspec.Struct, frozen=True):
    frame: bytes


class Answered(msgspec.Struct, frozen=True):
    request: int
    answer: BrokerMessage
    """The answer that belongs to the question, or a Refusal."""


class GivenUp(msgspec.Struct, frozen=True):
    request: int
    in_contact: bool
    """Whether the broker was there all the same: for a WAIT, that the job has not ended."""


Effect = Reopen | Send | Answered | GivenUp


def _answer_takes_s(question: Question) -> float:
    """How long a broker that has heard the question may be silent about it. No answer to a WAIT is ever due."""
    if isinstance(question, messages.Wait):
        return math.inf
    return question.wait_ms / 1000 if isinstance(question, messages.AskEvents) else 0.0


class _Open(msgspec.Struct):
    """A question without an answer."""

    question: Question
    size_bytes: int
    asked_s: float
    sent_s: float
    deadline_s: float
    patience_s: float


class ClientSession:
    """One connection's worth of questions and answers. `spread` in [0, 1) keeps many clients from knocking in step."""

    def __init__(self, role: messages.Role, instance: str, incarnation: bytes, software: str, spread: float) -> None:
        self.phase = Phase.IDLE
        self.welcome: messages.Welcome | None = None
        self.bad_frames = 0
        """Frames from the broker that were no answer to anything: a defect, of theirs or ours."""
        self._hello = messages.Hello(
            version_min=messages.PROTOCOL_VERSION,
            version_max=messages.PROTOCOL_VERSION,
            role=role,
            instance=instance,
            incarnation=incarnation,
            software=software,
        )
        self._spread = spread
        self._open: dict[int, _Open] = {}
        self._open_bytes = 0
        self._next_request = 1
        self._greetings = 0
        self._greet_until_s = 0.0
        self._heard_s = 0.0
        self._probed = False
        self._contact_s = 0.0
        self._due_s = 0.0
        """`tick` has nothing to do before this: no later than it must be, maybe earlier."""

    @property
    def waiting(self) -> int:
        """How many questions are open."""
        return len(self._open)

    def ask(self, question: Question, now_s: float, deadline_s: float, patience_s: float) -> tuple[int, list[Effect]]:
        """Put a question; its number, and what to do. It is given up at `deadline_s`, or when the broker has been out
        of reach for `patience_s`.

        Raises ValueError if it does not fit into a frame, Refused(BUSY) when `limits.RESEND_BYTES_MAX` are unanswered.
        """
        if not self._open:
            self._heard_s = self._contact_s = now_s
            self._probed = False
            self._due_s = math.inf
        request = self._next_request
        question = self._stamp(question, request)
        frame = codec.encode(question)
        if self._open_bytes + len(frame) > limits.RESEND_BYTES_MAX:
            raise Refused(
                Code.BUSY,
                f"{len(self._open)} questions ({self._open_bytes >> 20} MiB) to the broker are unanswered;"
                " wait for answers before you ask more",
                retry_after_s=1.0,
            )
        self._next_request += 1
        self._open[request] = _Open(question, len(frame), now_s, now_s, deadline_s, patience_s)
        self._open_bytes += len(frame)
        self._due_s = min(self._due_s, deadline_s, now_s + min(patience_s / 2, PROBE_S))
        if self.phase is Phase.READY:
            return request, [Send(frame)]
        if self.phase is Phase.IDLE or now_s >= self._greet_until_s:
            return request, self._greet(now_s, reopen=True)
        return request, []

    def forget(self, request: int) -> None:
        """Nobody waits for this answer any more. The question may have been heard all the same."""
        gone = self._open.pop(request, None)
        if gone is not None:
            self._open_bytes -= gone.size_bytes

    def receive(self, frame: bytes, now_s: float) -> list[Effect]:
        """A frame has come. Anything may be in it; what is no answer is counted and dropped."""
        try:
            message = codec.decode_from_broker(frame)
        except WireError:
            self.bad_frames += 1
            return []
        self._heard_s = now_s
        self._probed = False
        if isinstance(message, messages.Welcome):
            return self._welcomed(message, now_s)
        if isinstance(message, messages.Refusal):
            return self._refused(message, now_s)
        self._in_contact(now_s)
        request = getattr(message, "request", 0)
        entry = self._open.get(request)
        if entry is None:
            return []  # the answer to a probe, or a late one: given up or forgotten meanwhile
        if not self._fits(entry.question, message):
            self.bad_frames += 1
            return []
        if isinstance(message, messages.Receipts):
            for receipt in message.receipts:
                if receipt.code is Code.STOPPING:
                    return self._rest(receipt.retry_after_ms, now_s)  # the next broker will take them
        self.forget(request)
        return [Answered(request, message)]

    def tick(self, now_s: float) -> list[Effect]:
        """Time has passed. Harmless and cheap to call too often."""
        if now_s < self._due_s or not self._open:
            return []
        effects = self._give_up(now_s)
        if self._open and self.phase is Phase.GREETING and now_s >= self._greet_until_s:
            effects += self._greet(now_s, reopen=True)
        elif self._open and self.phase is Phase.READY:
            effects += self._mind_silence(now_s)
        self._due_s = self._next_due_s()
        return effects

    def next_wake_s(self) -> float | None:
        """When `tick` is due; None while nothing is waited for."""
        return self._due_s if self._open else None

    def goodbye(self) -> list[Effect]:
        """The client closes. What is still open is not answered any more."""
        ready = self.phase is Phase.READY
        self.phase = Phase.IDLE
        self._open.clear()
        self._open_bytes = 0
        return [self._send(messages.Bye(self._session))] if ready else []

    # ------------------------------------------------------------------------------------------ inside

    @property
    def _session(self) -> int:
        return self.welcome.session if self.welcome is not None else 0

    @property
    def _probe_s(self) -> float:
        only_waits = all(_answer_takes_s(entry.question) > 0 for entry in self._open.values())
        if not only_waits:
            return PROBE_S
        # Early enough to hear of the broker before patience is at its end.
        return min([WAIT_PROBE_S, *(entry.patience_s / 2 for entry in self._open.values())])

    def _stamp(self, question: Question, request: int) -> Question:
        return msgspec.structs.replace(question, session=self._session, request=request)

    @staticmethod
    def _send(message: PeerMessage) -> Send:
        return Send(codec.encode(message))

    @staticmethod
    def _fits(question: Question, message: BrokerMessage) -> bool:
        if type(message) is not ANSWERS[type(question)]:
            return False
        if isinstance(question, messages.Submit) and isinstance(message, messages.Receipts):
            return len(question.jobs) == len(message.receipts)
        return True

    def _give_up(self, now_s: float) -> list[Effect]:
        # A wait that is shorter than what a healthy broker may take to answer says nothing about it.
        silence_s = max(2 * self._probe_s, PROBE_S)
        reached = self.phase is Phase.READY and now_s - self._heard_s < silence_s
        gone = [number for number, entry in self._open.items() if now_s >= self._gives_up_s(entry)]
        for request in gone:
            self.forget(request)
        return [GivenUp(request, in_contact=reached) for request in gone]

    def _gives_up_s(self, entry: _Open) -> float:
        return min(entry.deadline_s, max(self._contact_s, entry.asked_s) + entry.patience_s)

    def _mind_silence(self, now_s: float) -> list[Effect]:
        silence_s = now_s - self._heard_s
        if self._probed and silence_s >= 2 * self._probe_s:
            return self._greet(now_s, reopen=True)
        effects: list[Effect] = []
        if not self._probed and silence_s >= self._probe_s:
            self._probed = True
            effects.append(self._send(messages.AskBroker(self._session, _PROBE)))
        for entry in self._open.values():
            if now_s - entry.sent_s >= RESEND_S + _answer_takes_s(entry.question):
                entry.sent_s = now_s
                effects.append(self._send(entry.question))
        return effects

    def _next_due_s(self) -> float:
        due_s = min((self._gives_up_s(entry) for entry in self._open.values()), default=0.0)
        if self.phase is Phase.GREETING:
            return min(due_s, self._greet_until_s)
        resends_s = [e.sent_s + RESEND_S + _answer_takes_s(e.question) for e in self._open.values()]
        return min([due_s, self._heard_s + self._probe_s * (2 if self._probed else 1), *resends_s])

    def _in_contact(self, now_s: float) -> None:
        self._contact_s = now_s
        self._greetings = 0

    def _greet(self, now_s: float, *, reopen: bool) -> list[Effect]:
        """Say HELLO; the wait for its answer is the back-off too."""
        wait_s = min(GREET_S * 2**self._greetings, GREET_S_MAX) * (1 - self._spread / 4)
        self.phase = Phase.GREETING
        self._greetings = min(self._greetings + 1, 16)
        self._greet_until_s = now_s + wait_s
        self._due_s = min(self._due_s, self._greet_until_s)
        effects: list[Effect] = [Reopen()] if reopen else []
        return [*effects, self._send(self._hello)]

    def _welcomed(self, message: messages.Welcome, now_s: float) -> list[Effect]:
        if self.phase is not Phase.GREETING:
            return []  # the answer to a HELLO that was said twice
        self.phase = Phase.READY
        self.welcome = message
        self._contact_s = now_s
        effects: list[Effect] = []
        for request, entry in self._open.items():
            entry.question = self._stamp(entry.question, request)
            entry.sent_s = now_s
            effects.append(self._send(entry.question))
        return effects

    def _refused(self, message: messages.Refusal, now_s: float) -> list[Effect]:
        if self.phase is Phase.GREETING:
            return self._not_welcome(message, now_s)
        if message.code is Code.UNKNOWN_SESSION and self.phase is Phase.READY:
            if self._greetings <= 1:
                return self._greet(now_s, reopen=False)
            # It greets us and then does not know us: not in a tight loop.
            return self._rest(message.retry_after_ms, now_s)
        if message.code is Code.STOPPING and self.phase is Phase.READY:
            return self._rest(message.retry_after_ms, now_s)
        self._in_contact(now_s)
        if message.request not in self._open:
            return []
        self.forget(message.request)
        return [Answered(message.request, message)]

    def _not_welcome(self, message: messages.Refusal, now_s: float) -> list[Effect]:
        if message.code in _NOT_FOR_GOOD:
            if message.code is not Code.UNKNOWN_SESSION:  # that one is late, for what was sent before the HELLO
                self._rest(message.retry_after_ms, now_s)
            return []
        self.phase = Phase.IDLE
        self._greetings = 0
        refused: list[Effect] = [Answered(request, message) for request in self._open]
        self._open.clear()
        self._open_bytes = 0
        return refused

    def _rest(self, retry_after_ms: int, now_s: float) -> list[Effect]:
        """Greet again on a new socket, but only after a while."""
        self.phase = Phase.GREETING
        wait_s = min(GREET_S * 2**self._greetings, GREET_S_MAX) * (1 - self._spread / 4)
        self._greetings = min(self._greetings + 1, 16)
        self._greet_until_s = now_s + max(wait_s, min(retry_after_ms / 1000, GREET_S_MAX))
        self._due_s = min(self._due_s, self._greet_until_s)
        return []

"""What running tasks say and ask through the session: their progress, and whether their job is still theirs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from zq.protocol import codec, limits
from zq.protocol import messages as m
from zq.workers import session_io as io
from zq.workers.leases import HeldLease, LeaseBook, Phase, clean_text
from zq.workers.uplink import Uplink

RESEND_MS = 5_000
"""Results and questions without an answer are sent again after this time."""
PROGRESS_MS = 200


class Questions:
    def __init__(self, book: LeaseBook, uplink: Uplink, out: list[io.Effect], now_ms: int) -> None:
        self._book = book
        self._uplink = uplink
        self._out = out
        self._request = 0
        self._holds: dict[int, int] = {}
        """request → token of the lease it asks about."""
        self._resend_ms = now_ms
        self._progress: dict[int, m.JobProgress] = {}
        """What is to be said: the newest of each, however many came."""
        self._said: dict[int, m.JobProgress] = {}
        """The last of each running attempt: a broker that has started anew does not know it."""
        self._progress_ms = now_ms

    def drop(self, lease: HeldLease) -> None:
        """The attempt is over: nothing is said or asked for it any more."""
        self._progress.pop(lease.token, None)
        self._said.pop(lease.token, None)
        if lease.hold_request is not None:
            self._holds.pop(lease.hold_request, None)
            lease.hold_request = None

    def progressed(self, event: io.Progressed, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is not None and lease.phase is Phase.RUNNING:
            message = clean_text(event.message, limits.MESSAGE_CHARS_MAX)
            progress = m.JobProgress(lease.job_id, event.token, event.done, event.total, message)
            self._progress[event.token] = self._said[event.token] = progress

    def hold_asked(self, event: io.HoldAsked, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is None or lease.phase is not Phase.RUNNING or lease.hold_request is not None:
            return
        self._request += 1
        lease.hold_request = self._request
        if not self._holds:
            self._resend_ms = now_ms + RESEND_MS
        self._holds[self._request] = event.token
        if self._uplink.ready:
            self._out.append(io.Send(m.Hold(self._uplink.session, self._request, lease.job_id, lease.token)))

    def held(self, held: m.Held, now_ms: int) -> None:
        token = self._holds.pop(held.request, None)
        lease = self._book.get(token) if token is not None else None
        if lease is not None and lease.slot is not None:
            lease.hold_request = None
            self._out.append(io.AnswerHold(lease.slot, lease.token, held.held))

    def welcomed(self, now_ms: int) -> None:
        """A new session: what has no answer is to be asked again at once, and how far each job has come be said."""
        self._resend_ms = now_ms
        self._progress = dict(self._said)

    def due(self, now_ms: int) -> Iterator[m.PeerMessage]:
        """What is to be sent now, in a session."""
        if self._holds and now_ms >= self._resend_ms:
            self._resend_ms = now_ms + RESEND_MS
            for request, token in self._holds.items():
                lease = self._book.get(token)
                if lease is not None:
                    yield m.Hold(self._uplink.session, request, lease.job_id, token)
        if self._progress and now_ms >= self._progress_ms:
            self._progress_ms = now_ms + PROGRESS_MS
            items, self._progress = list(self._progress.values()), {}
            for part in codec.split(items, [4 * len(item.message) + 64 for item in items]):
                yield m.Progress(self._uplink.session, list(part))

    def wake_ms(self) -> list[int]:
        """When `due` has something."""
        return [self._resend_ms] * bool(self._holds) + [self._progress_ms] * bool(self._progress)

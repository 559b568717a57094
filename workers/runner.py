"""The worker's parent process: one thread, one poll loop over the broker's connection, the slots and signals.

It decides nothing (see `session`), runs no task and imports no task module but zq's own, so nothing a task does can
keep it from its heartbeat. Idle, it wakes for its heartbeat only.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

import zmq

import zq
from zq.config import EXIT_CONFIG, Config
from zq.protocol import limits
from zq.protocol.job import valid_name
from zq.workers import session_io as io
from zq.workers.crew import Crew, TasksBroken
from zq.workers.headroom import Gauge
from zq.workers.identity import Identity
from zq.workers.session import Session, Settings
from zq.workers.sweep import sweep_dead
from zq.workers.wire import Wire

_SWEEPS_MAX: Final = 200
_POLL_MS_MAX: Final = 3_600_000
_ATTEND_S: Final = 1.0
"""The slots are looked after so often, whatever else there is to do."""
_NAP_JOBS: Final = 64
"""So many tiny jobs in every slot last longer than a nap."""
_NAP_S: Final = 0.001
_logger = logging.getLogger("zq.workers")


class Runner:
    """One worker. `run` serves until it is drained; everything it opened is closed then."""

    def __init__(
        self, config: Config, identity: Identity, queues: Mapping[str, int], modules: Sequence[str],
        concurrency: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """`queues`: slots of each; `concurrency`: async tasks that each of these slots runs at once, if not one."""
        self._config = config
        self._identity = identity
        self._queues = dict(queues)
        self._modules = tuple(modules)
        self._concurrency = {queue: at_once for queue, at_once in (concurrency or {}).items() if at_once > 1}
        self._exit_code: int | None = None
        self._signals = 0
        self._drains_asked = 0
        self._gauge = Gauge(config.jobs_path, config.worker.disk_reserve_mib << 20)
        self._effects: deque[io.Effect] = deque()
        self._poller = zmq.Poller()
        self._polled = (-1, -1)
        self._attend_by_s = 0.0
        self._code_after_drain = 0

    def run(self) -> int:
        """The exit code: 0 after a drain, 78 if the task modules cannot be used."""
        wakeup_out, wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        try:
            self._sweep()
            self._crew = Crew(
                self._identity.instance, self._queues, self._modules, self._config.worker, time.monotonic(),
                self._concurrency, self._config.log,
            )
            self._wire = Wire(self._config)
            try:
                self._serve(wakeup_out)
            finally:
                self._crew.close()
                self._wire.end()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wakeup_out)
            os.close(wakeup_in)
        assert self._exit_code is not None
        return self._exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _sweep(self) -> None:
        """End what an earlier process of this name has left, before its jobs can be given to anybody again."""
        for _ in range(_SWEEPS_MAX):
            if not sweep_dead(self._identity.instance):
                return
            time.sleep(0.01)
        _logger.error("processes of an earlier worker %s cannot be ended", self._identity.instance)

    # ------------------------------------------------------------------------------------------ the loop

    def _serve(self, wakeup_fd: int) -> None:
        session: Session | None = None
        while self._exit_code is None:
            try:
                session = self._round(session, wakeup_fd)
            except TasksBroken as error:
                _logger.error("%s", error)
                if session is None or self._code_after_drain:
                    self._exit_code = EXIT_CONFIG
                else:
                    # The modules were changed under a running worker. No task can run any more, but results are held.
                    self._code_after_drain = EXIT_CONFIG
                    self._crew.close()
                    self._do(session, session.handle(io.DrainAsked(), _ms()))

    def _round(self, session: Session | None, wakeup_fd: int) -> Session | None:
        ready = self._wait(session, wakeup_fd)
        if wakeup_fd in ready:
            os.read(wakeup_fd, 512)
        now_s = time.monotonic()
        events: list[io.Event] = []
        if self._crew.fileno() in ready or now_s >= min(self._attend_by_s, self._crew.wake_s()):
            self._attend_by_s = now_s + _ATTEND_S
            events = [*self._crew.receive(now_s), *self._crew.look(now_s)]
        if session is None:
            if self._signals:
                self._exit_code = 0
                return None
            if self._crew.tasks is None:
                return None
            session = self._begin(self._crew.tasks)
        while self._drains_asked < self._signals:  # the handler counts the one, the loop the other
            self._drains_asked += 1
            self._do(session, session.handle(io.DrainAsked(), _ms()))
        for event in events:
            self._do(session, session.handle(event, _ms()))
        for message in self._wire.receive(ready):
            self._do(session, session.handle(message, _ms()))
        self._hand_over(session)  # first of all: what was dispatched can begin
        if session.wants_room(_ms()):
            self._do(session, session.handle(self._gauge.measure(), _ms()))
        self._do(session, session.turn(_ms()))
        self._hand_over(session)
        return session

    def _hand_over(self, session: Session) -> None:
        while events := self._crew.flush():
            for event in events:
                self._do(session, session.handle(event, _ms()))

    def _wait(self, session: Session | None, wakeup_fd: int) -> set[object]:
        """Wait for news; what is readable."""
        if session is not None and session.slots.in_hand() >= _NAP_JOBS:
            # The slots have enough to do, and each single result is not worth a round and a message.
            time.sleep(_NAP_S)
        polled = (self._wire.changes, self._crew.fileno())
        if polled != self._polled:
            self._polled = polled
            self._poller = zmq.Poller()
            for item in (wakeup_fd, *self._wire.sockets, self._crew.fileno()):
                if item != -1:
                    self._poller.register(item, zmq.POLLIN)
        now_s = time.monotonic()
        wake_s = self._crew.wake_s()
        if session is not None:
            wake_s = min(wake_s, session.wake_ms() / 1000)
        timeout_ms = min(_POLL_MS_MAX, max(0.0, (wake_s - now_s) * 1000))
        # Rounded up: waking a moment too early would poll again and again until the moment has come.
        return {item for item, _ in self._poller.poll(int(timeout_ms) + (timeout_ms % 1 > 0))}

    def _begin(self, tasks: tuple[str, ...]) -> Session:
        if len(tasks) > limits.TASKS_PER_WORKER_MAX:
            raise TasksBroken(f"{len(tasks)} tasks; a worker has at most {limits.TASKS_PER_WORKER_MAX}")
        if wrong := [task for task in tasks if not valid_name(task)]:
            raise TasksBroken(f"{wrong[0]!r} cannot name a task: printable characters without blanks can")
        section = self._config.worker
        _logger.info(
            "worker %s serves %s with %d tasks; broker %s",
            self._identity.instance,
            ", ".join(f"{queue} ({slots} slots)" for queue, slots in self._queues.items()),
            len(tasks),
            self._config.client.broker,
        )
        settings = Settings(
            instance=self._identity.instance,
            incarnation=self._identity.incarnation,
            queues={queue: slots * self._concurrency.get(queue, 1) for queue, slots in self._queues.items()},
            single=frozenset(self._concurrency),
            tasks=tasks,
            drain_ms=round(section.drain_s * 1000),
            kill_grace_ms=round(section.kill_grace_s * 1000),
            software=f"zq {zq.__version__}",
            tags=section.tags,
        )
        return Session(settings, _ms())

    # ------------------------------------------------------------------------------------------ effects

    def _do(self, session: Session, effects: Sequence[io.Effect]) -> None:
        """Carry out effects in order, and what follows from those that fail."""
        self._effects.extend(effects)
        while self._effects:
            for event in self._carry_out(self._effects.popleft()):
                self._effects.extend(session.handle(event, _ms()))

    def _carry_out(self, effect: io.Effect) -> Sequence[io.Event]:
        match effect:
            case io.Send(message):
                return _if_any(self._wire.send(message))
            case io.StartJob():
                return _if_any(self._crew.start(effect, time.monotonic()))
            case io.TakeBack():
                return self._crew.take_back(effect)
            case io.EndSlot():
                return self._crew.end(effect, time.monotonic())
            case io.AnswerHold():
                self._crew.answer_hold(effect)
            case io.OpenLink():
                return _if_any(self._wire.open())
            case io.CloseLink():
                self._wire.close()
            case io.Say(level, text):
                _logger.log(level, "%s", text)
            case io.Leave(undelivered):
                _logger.info("worker %s leaves%s", self._identity.instance, f" ({undelivered})" if undelivered else "")
                self._exit_code = self._code_after_drain
        return ()


def _if_any(event: io.Event | None) -> Sequence[io.Event]:
    return () if event is None else (event,)


def _ms() -> int:
    return int(time.monotonic() * 1000)

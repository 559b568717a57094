"""A worker's slots, all queues together: as many as wanted, replaced when they end or are used up, watched while busy.

Between `Session`, which knows slots by number and attempts by token, and `slots`, which has processes. Gives the
session its events and does what the session wants done with slots.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from zq.config import LogSection, WorkerSection
from zq.protocol.job import JobSpec, format_id
from zq.workers import session_io as io
from zq.workers import slots
from zq.workers.channel import Assignment, AttemptResult
from zq.workers.keeper_fork import can_fork
from zq.workers.keeper_handle import KeeperHandle
from zq.workers.lanes import Lanes
from zq.workers.process import resident_bytes
from zq.workers.reports import reported
from zq.workers.slots import Slot, SlotState
from zq.workers.sweep import own_marker
from zq.workers.watchdog import FROZEN_S, Limits
from zq.workers.watched import Watched

RETRY_S: Final = 1.0
"""Before a slot, or a keeper, that died without having been of use is replaced; for a keeper doubled each time."""
RETRY_S_MAX: Final = 30.0
_USEFUL_S: Final = 10.0
START_S_MAX: Final = 60.0
"""What the on_start hooks of a slot may take."""
STOP_S_MAX: Final = 5.0
"""What the on_stop hooks may take when the worker leaves."""
_WEIGH_S: Final = 1.0
"""Between looks at how large a slot has grown."""
_OF_SLOTS: Final = (slots.Opened, slots.Finished, slots.Progressed, slots.StillMineAsked, slots.Ended)
_logger = logging.getLogger("zq.workers")


class TasksBroken(Exception):
    """The task modules cannot be used; the text says why. A restart does not mend it."""


class _Place:
    """A slot and its queue. `number` is never used again, also not by the slots of a later keeper."""

    def __init__(self, number: int, queue: str, slot: Slot, now_s: float) -> None:
        self.number = number
        self.queue = queue
        self.slot = slot
        self.attempts: deque[Watched] = deque()
        """What the slot has, in its order: the first one runs."""
        self.unsent: list[Assignment] = []
        """The last of them, until `Crew.flush`."""
        self.asked_s = now_s
        self.look_s = now_s
        self.opened = False
        self.planned = False
        """Whether its end was our wish."""
        self.closing = False
        """It gets no more jobs, and is retired after those that it has."""
        self.replaced = False
        """Whether the slot in its place has been asked for."""

    @property
    def attempt(self) -> Watched | None:
        return self.attempts[0] if self.attempts else None


class Crew:
    def __init__(
        self, instance: str, queues: Mapping[str, int], modules: Sequence[str], section: WorkerSection, now_s: float,
        concurrency: Mapping[str, int] | None = None, log: LogSection | None = None,
    ) -> None:  # fmt: skip
        """`concurrency`: of queues whose slots run several async tasks at once.

        Starts the keeper; `tasks` is known, and slots can open, when `receive` has seen the modules loaded."""
        self._instance = instance
        self._queues = dict(queues)
        self._modules = tuple(modules)
        self._section = section
        self._memory_bytes = section.memory_limit_mib << 20
        self._log = log or LogSection()
        self._concurrency = dict(concurrency or {})
        self._lanes: dict[Slot, Lanes] = {}
        self._lanes_of: dict[int, Lanes] = {}
        self._places: dict[Slot, _Place] = {}
        self._by_number: dict[int, _Place] = {}
        self._unsent: list[_Place] = []
        self._missing: list[tuple[float, str]] = []
        """(when, queue) of slots that are to be opened."""
        self._numbers = 0
        self._seqs = 0
        self._generation = 0
        self._keeper_failures = 0
        self._keeper_s = now_s
        self._keeper: KeeperHandle | None = None
        self._closing = False
        self.tasks: tuple[str, ...] | None = None
        """The tasks the modules have; None until they are loaded."""
        self._start_keeper(now_s)

    # ------------------------------------------------------------------------------------------ the loop's side

    def fileno(self) -> int:
        """To be polled for reading; −1 while there is no keeper. Changes when a keeper is replaced."""
        return self._keeper.fileno() if self._keeper is not None else -1

    def receive(self, now_s: float) -> list[io.Event]:
        """What has happened since. Raises TasksBroken when the modules cannot be loaded."""
        if self._keeper is None:
            return []
        events: list[io.Event] = []
        for event in self._keeper.receive():
            events += self._take(event, now_s)
        return events

    def look(self, now_s: float) -> list[io.Event]:
        """Sample the slots that are due, judge their attempts, open the slots that are missing."""
        events: list[io.Event] = []
        if self._keeper is None and now_s >= self._keeper_s and not self._closing:
            self._start_keeper(now_s)
        if self._keeper is not None and self.tasks is not None and not self._closing:
            for due in [due for due in self._missing if now_s >= due[0]]:
                self._missing.remove(due)
                self._open(due[1], now_s)
        for place in self._places.values():
            if place.attempt is not None and now_s >= place.look_s:
                events += place.attempt.judge(place.slot, now_s, late=now_s - place.look_s > FROZEN_S)
                place.look_s = place.attempt.due_s(self._section.sample_s, now_s)
        for lanes in self._lanes.values():
            events += lanes.look(now_s)
        events += self._end_late_starters(now_s)
        return events

    def _end_late_starters(self, now_s: float) -> list[io.Event]:
        """Slots whose hooks do not come to an end."""
        waiting: list[_Place | Lanes] = [*self._places.values(), *self._lanes.values()]
        for waits in waiting:
            if not waits.opened and waits.slot.pid and now_s >= waits.asked_s + START_S_MAX:
                waits.slot.end(0.0, f"its on_start hooks took more than {START_S_MAX:g} s")
        return []

    def wake_s(self) -> float:
        """When `look` has something to do."""
        times = [place.look_s for place in self._places.values() if place.attempt is not None]
        times += [lanes.wake_s() for lanes in self._lanes.values()]
        waiting: list[_Place | Lanes] = [*self._places.values(), *self._lanes.values()]
        times += [waits.asked_s + START_S_MAX for waits in waiting if not waits.opened and waits.slot.end_by_s is None]
        if self._keeper is None:
            times.append(self._keeper_s)
        elif self.tasks is not None:
            times += [due_s for due_s, _ in self._missing]
        # A keeper that is late with the end of a tree is noticed in `receive`: see that it is called.
        times += [waits.slot.end_by_s for waits in waiting if waits.slot.end_by_s is not None]
        return min(times, default=float("inf"))

    def close(self) -> None:
        """End the keeper and all below it, and wait for that (a few seconds at most). Slots with hooks end in order."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.retire_all(STOP_S_MAX)
            self._keeper.close()
            self._keeper = None

    # ------------------------------------------------------------------------------------------ the session's side

    def start(self, effect: io.StartJob, now_s: float) -> io.NotStarted | None:
        """Give the job to its slot, with the next `flush`."""
        place = self._by_number.get(effect.slot)
        lanes = self._lanes_of.get(effect.slot) if place is None else None
        if place is None and lanes is None:
            return io.NotStarted(effect.token)
        spec = effect.spec
        self._seqs += 1
        assignment = Assignment(
            self._seqs,
            format_id(spec.id),
            effect.attempt,
            spec.task,
            spec.queue,
            spec.arguments,
            spec.soft_limit_ms / 1000,
            self._section.kill_grace_s,
        )
        if place is None:
            assert lanes is not None
            taken = lanes.start(effect.slot, effect.token, assignment, self._limits(spec), now_s)
            return None if taken else io.NotStarted(effect.token)
        if not place.unsent:
            self._unsent.append(place)
        place.unsent.append(assignment)
        attempt = Watched(effect.token, self._seqs, self._limits(spec))
        place.attempts.append(attempt)
        if len(place.attempts) == 1:
            self._begin(place, attempt, now_s)
        return None

    def _limits(self, spec: JobSpec) -> Limits:
        """The job's own, and of two limits of memory the lower."""
        bounds = [bound for bound in (spec.memory_limit_bytes, self._memory_bytes) if bound]
        stall_s = spec.stall_after_ms / 1000
        return Limits(spec.soft_limit_ms / 1000, spec.hard_limit_ms / 1000, min(bounds, default=0), stall_s)

    def _begin(self, place: _Place, attempt: Watched, now_s: float) -> None:
        attempt.start(place.slot.pid, now_s)
        place.look_s = attempt.due_s(self._section.sample_s, now_s)

    def flush(self) -> list[io.Event]:
        """Send the slots what `start` has gathered. To be called before waiting."""
        events: list[io.Event] = []
        places, self._unsent = self._unsent, []
        for place in places:
            jobs, place.unsent = place.unsent, []
            try:
                place.slot.send(jobs)
            except RuntimeError as error:
                _logger.warning("%d jobs could not be handed over: %s", len(jobs), error)
                place.slot.end(0.0, str(error))
                # The last one first: each is put before those that wait already.
                events += [io.NotStarted(place.attempts.pop().token) for _ in jobs]
        return events

    def take_back(self, effect: io.TakeBack) -> list[io.Event]:
        """Take back what the slot has not begun."""
        place = self._by_number.get(effect.slot)
        if place is None:
            return [io.TakenBack(effect.slot, ())]
        events = self.flush()
        return [*events, io.TakenBack(effect.slot, self._tokens_back(place, place.slot.take_back()))]

    def _tokens_back(self, place: _Place, seqs: Sequence[int]) -> tuple[int, ...]:
        """The tokens of the place's last attempts, which `seqs` are."""
        tokens = [place.attempts.pop().token for _ in seqs]
        return tuple(reversed(tokens))

    def end(self, effect: io.EndSlot, now_s: float) -> list[io.Event]:
        """End the slot's tree. What it has used is measured once more before: afterwards nobody can tell."""
        place = self._by_number.get(effect.slot)
        if place is None:
            if (lanes := self._lanes_of.get(effect.slot)) is not None:
                lanes.end(effect.slot, effect.why, now_s)
            return []
        events: list[io.Event] = []
        if place.attempt is not None and place.slot.state is SlotState.OPEN:
            events.append(place.attempt.measured(place.slot.pid, now_s))
        place.planned = True
        place.slot.end(self._section.kill_grace_s, effect.why)
        return events

    def answer_hold(self, effect: io.AnswerHold) -> None:
        place = self._by_number.get(effect.slot)
        if place is not None and place.attempt is not None and place.attempt.token == effect.token:
            place.slot.answer_still_mine(place.attempt.seq, effect.held)
        elif (lanes := self._lanes_of.get(effect.slot)) is not None:
            lanes.answer_hold(effect.slot, effect.token, effect.held)

    # ------------------------------------------------------------------------------------------ keeper and slots

    def _start_keeper(self, now_s: float) -> None:
        self._generation += 1
        self._keeper_s = now_s
        self.tasks = None
        marker = own_marker(self._instance, self._generation)
        self._keeper = KeeperHandle(
            self._modules, marker, adopts_orphans=True, log_level=self._log.level, log_json=self._log.json,
            fork=can_fork(marker),
        )
        self._missing = [(now_s, queue) for queue, count in self._queues.items() for _ in range(count)]

    def _open(self, queue: str, now_s: float) -> None:
        assert self._keeper is not None
        at_once = self._concurrency.get(queue, 1)
        if at_once > 1:
            slot = self._keeper.open_slot(at_once)
            self._lanes[slot] = Lanes(slot, queue, self._section, now_s, self._next_number)
            return
        place = _Place(self._next_number(), queue, self._keeper.open_slot(), now_s)
        self._places[place.slot] = place
        self._by_number[place.number] = place

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _take(self, event: slots.Event, now_s: float) -> list[io.Event]:
        if self._lanes and isinstance(event, _OF_SLOTS) and event.slot in self._lanes:
            return self._take_of_lanes(event, self._lanes[event.slot], now_s)
        match event:
            case slots.Ready(tasks):
                if not tasks:
                    raise TasksBroken(f"the modules {', '.join(self._modules)} define no task (@app.task)")
                self.tasks = tasks
                return []
            case slots.LoadFailed(error):
                raise TasksBroken(error)
            case slots.Opened(slot):
                place = self._places[slot]
                place.opened = True
                return [io.SlotUp(place.number, place.queue, self._section.max_tasks_per_slot)]
            case slots.Finished(slot, results):
                place = self._places[slot]
                return [item for result in results for item in self._finished(place, result, now_s)]
            case slots.Progressed(slot, progress):
                self._alive(slot, progress.seq, now_s)
                return self._of_attempt(
                    slot,
                    progress.seq,
                    lambda token: io.Progressed(token, progress.done, progress.total, progress.message),
                )
            case slots.StillMineAsked(slot, seq):
                return self._of_attempt(slot, seq, io.HoldAsked)
            case slots.Ended():
                return self._ended(event, now_s)
            case slots.KeeperEnded(status, strays):
                self._keeper_ended(status, strays, now_s)
                return []

    def _take_of_lanes(self, event: slots.Event, lanes: Lanes, now_s: float) -> list[io.Event]:
        before = lanes.numbers
        events: list[io.Event] = []
        match event:
            case slots.Opened():
                events = lanes.open()
            case slots.Finished(slot, results):
                events = lanes.finished(results)
                if not lanes.replaced and self._is_used_up(slot, now_s):
                    events = [*lanes.close(), *events]
                    self._missing.append((now_s, lanes.queue))
                if lanes.replaced and not lanes.busy:
                    slot.retire()
            case slots.Progressed(_, progress):
                if (token := lanes.token_of(progress.seq)) is not None:
                    events = [io.Progressed(token, progress.done, progress.total, progress.message)]
            case slots.StillMineAsked(_, seq):
                if (token := lanes.token_of(seq)) is not None:
                    events = [io.HoldAsked(token)]
            case slots.Ended(slot):
                del self._lanes[slot]
                events = lanes.ended(event)
                self._note_end(event, lanes, worked=slot.jobs_done > 0 or lanes.busy, now_s=now_s)
            case _:
                pass
        self._lanes_of |= dict.fromkeys(lanes.numbers, lanes)
        for number in set(before).difference(lanes.numbers):
            del self._lanes_of[number]
        return events

    def _alive(self, slot: Slot, seq: int, now_s: float) -> None:
        attempt = self._places[slot].attempt
        if attempt is not None and attempt.seq == seq:
            attempt.heard_s = now_s

    def _of_attempt(self, slot: Slot, seq: int, make: Callable[[int], io.Event]) -> list[io.Event]:
        attempt = self._places[slot].attempt
        return [make(attempt.token)] if attempt is not None and attempt.seq == seq else []

    def _finished(self, place: _Place, result: AttemptResult, now_s: float) -> list[io.Event]:
        if not place.attempts or place.attempts[0].seq != result.seq:
            return []
        attempt = place.attempts.popleft()
        events = self._retire_if_used_up(place, now_s)
        if place.attempts:
            self._begin(place, place.attempts[0], now_s)
        events.append(reported(attempt.token, result, attempt.sample))
        return events

    def _retire_if_used_up(self, place: _Place, now_s: float) -> list[io.Event]:
        """Before the result is told, so that the session does not give the slot another job."""
        events: list[io.Event] = []
        if not place.closing and self._is_used_up(place.slot, now_s):
            place.closing = True
            events.append(io.SlotClosing(place.number))
        if place.closing and not place.attempts:
            place.planned = place.replaced = True
            place.slot.retire()
            # Not only when it has ended: it does nothing any more.
            self._missing.append((now_s, place.queue))
        return events

    def _is_used_up(self, slot: Slot, now_s: float) -> bool:
        section = self._section
        if section.max_tasks_per_slot and slot.jobs_done >= section.max_tasks_per_slot:
            return True
        if not section.max_memory_per_slot_mib or now_s < slot.weigh_s:
            return False
        slot.weigh_s = now_s + _WEIGH_S
        used_mib = resident_bytes(slot.pid) >> 20
        if used_mib <= section.max_memory_per_slot_mib:
            return False
        _logger.info("slot %d has grown to %d MiB and is replaced", slot.number, used_mib)
        return True

    def _ended(self, event: slots.Ended, now_s: float) -> list[io.Event]:
        place = self._places.pop(event.slot)
        del self._by_number[place.number]
        self._note_end(event, place, worked=bool(place.attempts) or place.slot.jobs_done > 0, now_s=now_s)
        if not place.opened:
            return []
        unsent = len(place.unsent)
        if unsent:
            self._unsent.remove(place)
        untouched = [place.attempts.pop().token for _ in range(len(event.untouched) + unsent)]
        return [
            *map(io.NotStarted, untouched),
            io.SlotGone(place.number, f"the {event.reason}"),
        ]

    def _note_end(self, event: slots.Ended, place: _Place | Lanes, *, worked: bool, now_s: float) -> None:
        if event.stuck:
            _logger.error("%d processes of slot %d cannot be ended, not even by KILL", event.stuck, event.slot.number)
        of_use = place.planned or worked or now_s - place.asked_s >= _USEFUL_S
        if not place.replaced:
            self._missing.append((now_s if of_use else now_s + RETRY_S, place.queue))
        if not place.planned:
            _logger.warning("slot %d of queue %s: the %s", event.slot.number, place.queue, event.reason)

    def _keeper_ended(self, status: int, strays: Sequence[int], now_s: float) -> None:
        self._keeper = None
        self.tasks = None
        self._missing = []
        if strays:
            _logger.error("processes %s of a dead keeper cannot be ended", ", ".join(map(str, strays)))
        if self._closing:
            return
        self._keeper_failures = 0 if now_s - self._keeper_s >= 60 else self._keeper_failures + 1
        wait_s = min(RETRY_S_MAX, RETRY_S * 2**self._keeper_failures)
        self._keeper_s = now_s + wait_s
        _logger.error("the keeper of the slots has ended (status %d); another one starts in %g s", status, wait_s)

"""Steps that are decided and not yet in the tables they belong to: one for each job, in front of whatever holds those.

Two of these stand one behind the other: the core's, with what the journal has not committed yet, and the journal's,
with what is durable in its log and not yet in its tables. A job that is accepted, run and done while it stands here is
written to the tables once.
"""

from __future__ import annotations

from zq.broker.journal import Step
from zq.broker.records import drops_result, holds_key, ready_key, stands_ready


class Pending:
    def __init__(self) -> None:
        self.steps: dict[bytes, Step] = {}
        self.keys: dict[str, bytes | None] = {}
        """Keys that were taken or given back, with the live job that has each now."""

    def add(self, step: Step) -> None:
        row = step.after or step.before
        assert row is not None
        if row.key:
            if step.after is not None and holds_key(step.after):
                self.keys[row.key] = row.id
            elif step.before is not None and holds_key(step.before):
                self.keys[row.key] = None
        earlier = self.steps.get(row.id)
        self.steps[row.id] = step if earlier is None else joined(earlier, step)

    def ready(self, prefix: bytes, after: bytes) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
        """What has become of the ready jobs that the tables have: the keys that are theirs no more, and the entries
        that are new, of the keys that begin with `prefix` and come behind `after`."""
        left: set[bytes] = set()
        come: list[tuple[bytes, bytes]] = []
        for job_id, step in self.steps.items():
            before, now = step.before, step.after
            if before is not None and stands_ready(before):
                left.add(ready_key(before))
            if now is not None and stands_ready(now):
                key = ready_key(now)
                if key > after and key.startswith(prefix):
                    come.append((key, job_id))
        return left, come

    def clear(self) -> None:
        self.steps.clear()
        self.keys.clear()


def joined(earlier: Step, later: Step) -> Step:
    """Two steps of one job as one."""
    events = earlier.events + later.events
    if earlier.after is None or later.anew:
        # Forgotten, and its id used again: nothing of the old job may be left beside the new one.
        return Step(
            earlier.before, later.after, later.spec, later.attempts, later.result, events,
            anew=earlier.before is not None,
        )  # fmt: skip
    result = later.result
    if result is None and not drops_result(earlier.after, later.after):
        result = earlier.result
    return Step(
        earlier.before, later.after, earlier.spec, earlier.attempts + later.attempts, result, events,
        anew=earlier.anew and later.after is not None,
    )  # fmt: skip

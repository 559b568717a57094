"""A little worker's parent, run as a program of its own so that a test can kill it with -9.

argv: instance, the folder in which tasks stand, then a task and its arguments as JSON. Prints its keeper's pid, its
slots' pids and its marker once all slots run their task; then serves until it is killed.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

import msgspec

from zq.workers import slots
from zq.workers.channel import Assignment
from zq.workers.keeper_handle import KeeperHandle
from zq.workers.sweep import own_marker


def main(instance: str, folder: str, task: str, arguments: str) -> None:
    marker = own_marker(instance, 1)
    keeper = KeeperHandle(["slot_tasks"], marker, adopts_orphans=True)
    opened = [keeper.open_slot(), keeper.open_slot()]
    files = []
    while True:
        select.select([keeper], [], [], 0.05)
        for event in keeper.receive():
            match event:
                case slots.Opened(slot):
                    files.append(Path(folder) / str(slot.number))
                    packed = msgspec.msgpack.encode([[str(files[-1]), *json.loads(arguments)], {}])
                    slot.send([Assignment(1, "job", 1, f"slot_tasks.{task}", "q", packed, 60.0, 1.0)])
                case slots.KeeperEnded(_, strays):
                    print(json.dumps({"keeper_ended": True, "strays": strays, "at": time.monotonic()}), flush=True)
                    return
        if len(files) == len(opened) and all(file.exists() for file in files):
            files.append(Path("/nowhere"))  # said once
            pids = [slot.pid for slot in opened]
            print(json.dumps({"keeper": keeper.pid, "slots": pids, "marker": marker.format()}), flush=True)


main(*sys.argv[1:])

"""Journals of older formats, brought up to this one when a broker opens them: in the opening transaction, all or none.

To change the format: raise FORMAT in records.py, and add the step from the format before to the table here. A step
sees the journal as the step before left it, and must not rely on today's index_keys for what it reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lmdb
import msgspec

from zq.broker.hours import Hours, changed, hour_key
from zq.broker.journal import Step
from zq.broker.lmdb_view import encode
from zq.broker.records import FORMAT, Index, JobRow, KeptResult, index_keys
from zq.protocol.job import State

log = logging.getLogger("zq.broker")

Tables = dict[str, Any]
_decode_row = msgspec.msgpack.Decoder(JobRow).decode
_decode_result = msgspec.msgpack.Decoder(KeptResult).decode


def _lanes_and_results(txn: lmdb.Transaction, tables: Tables) -> None:
    """1 → 2: ready jobs stand in lanes, and results are found by the time until which they are kept."""
    txn.drop(tables[Index.READY], delete=False)
    for job_id, data in txn.cursor(db=tables["row"]):
        row = _decode_row(data)
        kept = txn.get(job_id, db=tables["result"])
        if row.state is State.DONE and kept is not None:
            row = msgspec.structs.replace(row, result_until_ms=_decode_result(kept).expires_ms)
            txn.put(bytes(job_id), encode(row), db=tables["row"])
        for index, key in index_keys(row):
            if index in (Index.READY, Index.RESULT):
                txn.put(key, row.id, db=tables[index])


def _log_and_hours(txn: lmdb.Transaction, tables: Tables) -> None:
    """2 → 3: there is a write-ahead log, which is made when the journal is opened, and jobs are counted by hours: those
    that are still known."""
    hours = Hours()
    for _, data in txn.cursor(db=tables["row"]):
        hours.add(Step(None, _decode_row(data)))
    for (queue, start_ms), counts in hours.changes.items():
        txn.put(hour_key(queue, start_ms), encode(changed(None, queue, start_ms, counts)), db=tables["hour"])


UPGRADES: dict[int, Callable[[lmdb.Transaction, Tables], None]] = {1: _lanes_and_results, 2: _log_and_hours}
"""Format found → the step to the next one."""


def upgrade(txn: lmdb.Transaction, tables: Tables, found: bytes | None) -> None:
    """Bring the journal to FORMAT if there is a way; leaves any other for `refuse_format` to name."""
    number = int(found) if found is not None and found.isdigit() else FORMAT
    while number in UPGRADES and number < FORMAT:
        log.warning("the journal is upgraded", extra={"from_format": number, "to_format": number + 1})
        UPGRADES[number](txn, tables)
        number += 1
        txn.put(b"format", str(number).encode(), db=tables["meta"])

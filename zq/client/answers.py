"""What an answer of the broker means to a caller: a value, or one of zq's exceptions. No sockets here."""

from __future__ import annotations

from typing import Any

from zq import payload
from zq.exceptions import Conflict, JobFailed, Refused, ResultTimeout, Unavailable
from zq.protocol import messages
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id
from zq.protocol.messages import Receipt, ReceiptStatus


def refused(refusal: messages.Refusal) -> Refused:
    return _refused(refusal.code, refusal.detail, refusal.retry_after_ms)


def check_receipt(receipt: Receipt) -> Receipt:
    """The receipt of a job that is on disk. Raises Refused or Conflict."""
    if receipt.status is ReceiptStatus.REFUSED:
        raise _refused(receipt.code or Code.INVALID, receipt.detail, receipt.retry_after_ms)
    return receipt


def _refused(code: Code, detail: str, retry_after_ms: int) -> Refused:
    kind = Conflict if code is Code.CONFLICT else Refused
    return kind(str(code), detail or "the broker gives no reason", retry_after_ms / 1000 if retry_after_ms else None)


def value_of(ended: messages.Ended) -> Any:
    """What the job returned. Raises JobFailed, or Refused(NOT_FOUND) if the result is not kept any more."""
    if ended.state is not State.DONE:
        raise JobFailed(format_id(ended.job_id), ended.state.label, ended.error)
    if not ended.result_kept:
        raise Refused(
            Code.NOT_FOUND,
            f"job {format_id(ended.job_id)} is done, but its result is not kept any more"
            " (broker.result_ttl_s in zq.toml says how long results are)",
        )
    return payload.decode_result(ended.result)


def not_ended(job_id: bytes, timeout_s: float) -> ResultTimeout:
    return ResultTimeout(f"job {format_id(job_id)} has not ended within {timeout_s:g} s; it goes on")


def unavailable(address: str, after_s: float, *, connected: bool, with_key: bool, what: str = "") -> Unavailable:
    """`connected`: a connection stood, so something listens there and the keys fit."""
    if connected:
        cause = "it is connected but silent: look at its log, and whether its disk is slow or full"
    elif with_key:
        cause = (
            "no connection: is it running (`zq status`, `zq broker`), is the address right (client.broker in zq.toml),"
            " and does it know this machine's key (`zq keys ls` where it runs)?"
        )
    else:
        cause = (
            "no connection: is it running (`zq status`, `zq broker`), is the address right (client.broker in zq.toml),"
            " and does it want a key (client.key)?"
        )
    return Unavailable(f"no answer from the broker at {address} within {after_s:.3g} s; {cause}{what}")


def unknown_outcome(job_id: bytes) -> str:
    """For the text of Unavailable after a submit."""
    return f" Whether job {format_id(job_id)} was accepted is unknown; submit it again with this id and it runs once."

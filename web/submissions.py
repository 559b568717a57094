"""The routes that take jobs: one, or many with an answer each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.client import answers
from zq.client.requests import JobRequest, encode
from zq.exceptions import Conflict, Invalid, Refused, Unavailable
from zq.protocol import limits
from zq.protocol.job import Bytes, State, format_id, job_id_from, new_job_id
from zq.protocol.messages import Receipt, ReceiptStatus
from zq.web import problems, views
from zq.web.answers import json_response
from zq.web.auth import Caller, Scope
from zq.web.bodies import read_json
from zq.web.callers import caller_of, check_queue
from zq.web.idempotency import KeptAnswer, fingerprint
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem, ProblemBody, outcome_unknown
from zq.web.services import Services, now_ms

IDEMPOTENCY_KEY_CHARS_MAX = 255
BATCH_JOBS_MAX = 1000
_EXAMPLE = {"task": "thumbnails.thumbnail", "queue": "thumbnails", "args": ["a.png"], "kwargs": {"width_px": 640}}

_AGAIN = frozenset({429, 502, 503, 504})
"""Of a job in a batch: the same call later may take it."""

_Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
_Key = Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)]
_Tag = Annotated[str, Meta(min_length=1, max_length=limits.TAG_CHARS_MAX)]
_Duration = Annotated[float, Meta(ge=0, le=limits.DURATION_MS_MAX / 1000)]


class JobSubmission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job by the name of its task."""

    task: _Name
    queue: _Name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    priority: Annotated[int, Meta(ge=limits.PRIORITY_MIN, le=limits.PRIORITY_MAX)] = limits.PRIORITY_DEFAULT
    countdown_s: _Duration | None = None
    """Not before so many seconds from now."""
    eta: Annotated[datetime, Meta(tz=True)] | None = None
    """Not before this time (RFC 3339 with an offset)."""
    expires_s: _Duration | None = None
    """Not started by then: expired."""
    max_retries: Annotated[int, Meta(ge=0, le=limits.RETRIES_MAX)] = 3
    backoff_s: _Duration = 60.0
    soft_time_limit_s: _Duration | None = None
    time_limit_s: _Duration | None = None
    key: _Key = ""
    """At most one live job has this key."""
    key_policy: Literal["refuse", "replace", "reschedule"] = "refuse"
    """If a live job has the key: answer with that job; or take the place of one that waits; or give it this time."""
    concurrency_key: _Key = ""
    """At most `concurrency_limit` jobs with this key run at once, on all workers together."""
    concurrency_limit: Annotated[int, Meta(ge=1, le=limits.CREDIT_MAX)] = 1
    tags: Annotated[list[_Tag], Meta(max_length=limits.TAGS_MAX)] = []
    """Only a worker that has all of these may run it."""
    disk_bytes: Bytes = 0
    """Only a worker that has so much disk left may run it; likewise memory_bytes."""
    memory_bytes: Bytes = 0
    memory_limit_bytes: Bytes = 0
    """Its processes are ended when they take more; 0: no limit but the worker's own."""
    stall_after_s: _Duration | None = None
    """Without a sign of life for so long it gets its soft limit; 0: never, null: as the configuration says."""


class JobBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    jobs: Annotated[list[JobSubmission], Meta(min_length=1, max_length=BATCH_JOBS_MAX)]


class BatchItem(views.View, frozen=True):
    """What became of one job of a batch: `job`, or the `problem` it met."""

    status: int
    """As it would have been alone."""
    job: views.JobAccepted | None = None
    problem: ProblemBody | None = None


class BatchAnswer(views.View, frozen=True):
    results: list[BatchItem]
    """One for each job, in their order."""
    accepted: int


class SubmissionRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def submit_job(self, request: Request) -> Response:
        web = self._services.config.web
        body = await read_json(
            request, JobSubmission, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s
        )
        caller = caller_of(request)
        check_queue(caller, body.queue)
        return await self._once(request, body, lambda key: self._submit(body, caller, key))

    async def _submit(self, body: JobSubmission, caller: Caller, key: str | None) -> tuple[Response, bool]:
        job_id = new_job_id() if key is None else job_id_from("http", caller.name, key)
        try:
            job = await self._services.client.submit_request(request_of(body, job_id))
        except Conflict:
            raise _key_reused() from None
        except Unavailable as error:
            raise _not_submitted(error, job_id, with_key=key is not None) from None
        assert job.receipt is not None
        accepted = await self._accepted(body, job.receipt)
        return json_response(accepted, HTTPStatus.ACCEPTED, {"Location": f"/v1/jobs/{job.id}"}), True

    async def _once(
        self, request: Request, body: msgspec.Struct, work: Callable[[str | None], Awaitable[tuple[Response, bool]]]
    ) -> Response:
        """What `work` answers; with an Idempotency-Key, its first answer again. `work` also says whether its answer is
        the last word, or the same call may yet do more."""
        key = idempotency_key(request.headers.get("idempotency-key"))
        if key is None:
            return (await work(None))[0]
        caller, mark = caller_of(request).name, fingerprint(request["path"], body)
        kept = await self._services.answers.find(caller, key, now_ms())
        if kept is None:
            response, final = await work(key)
            if not final:
                return response
            mine = KeptAnswer(mark, response.status_code, response.headers.get("location", ""), bytes(response.body))
            kept = await self._services.answers.keep(caller, key, mine, now_ms())
            if kept is mine:
                return response
        if kept.fingerprint != mark:
            raise _key_reused()
        headers = {"Cache-Control": "no-store", "Idempotency-Replayed": "true"}
        if kept.location:
            headers["Location"] = kept.location
        return Response(kept.body, kept.status, headers, "application/json")

    async def submit_jobs(self, request: Request) -> Response:
        web = self._services.config.web
        body = await read_json(request, JobBatch, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s)
        caller = caller_of(request)
        return await self._once(request, body, lambda key: self._submit_all(body, caller, key))

    async def _submit_all(self, body: JobBatch, caller: Caller, key: str | None) -> tuple[Response, bool]:
        items: dict[int, BatchItem] = {}
        good: list[tuple[int, JobRequest]] = []
        for index, job in enumerate(body.jobs):
            job_id = new_job_id() if key is None else job_id_from("http-batch", caller.name, key, str(index))
            one = request_of(job, job_id)
            try:
                check_queue(caller, job.queue)
                encode(one, self._services.config.worker)
            except Problem as problem:
                items[index] = _refused_item(problem)
            except Invalid as error:
                items[index] = _refused_item(problems.invalid(f"#/jobs/{index}", str(error)[:1000]))
            else:
                good.append((index, one))
        try:
            receipts = await self._services.client.submit_many([one for _, one in good])
        except Unavailable as error:
            again = "send it again with the same Idempotency-Key" if key else "an Idempotency-Key makes a repeat safe"
            raise outcome_unknown(f"which of the jobs were accepted is unknown; {again}. {error}") from None
        places = [index for index, _ in good]
        found = await asyncio.gather(
            *(self._item(body.jobs[index], receipt) for index, receipt in zip(places, receipts, strict=True))
        )
        items |= zip(places, found, strict=True)
        results = [items[index] for index in range(len(body.jobs))]
        answer = BatchAnswer(results=results, accepted=sum(item.job is not None for item in results))
        return json_response(answer), not any(item.status in _AGAIN for item in results)

    async def _item(self, body: JobSubmission, receipt: Receipt) -> BatchItem:
        try:
            answers.check_receipt(receipt)
        except Conflict:
            return _refused_item(_key_reused())
        except Refused as error:
            return _refused_item(problems.refused(error))
        return BatchItem(status=HTTPStatus.ACCEPTED, job=await self._accepted(body, receipt))

    async def _accepted(self, body: JobSubmission, receipt: Receipt) -> views.JobAccepted:
        state, queue = receipt.state or State.READY, body.queue
        if receipt.status is ReceiptStatus.KEY_TAKEN:
            # The live job that has the key may stand in another queue.
            with contextlib.suppress(Refused, Unavailable):
                found = (await self._services.client.detail(receipt.job_id)).job
                state, queue = found.state, found.queue
        return views.JobAccepted(
            id=format_id(receipt.job_id),
            state=state.label,
            queue=queue,
            deduplicated=receipt.status is not ReceiptStatus.ACCEPTED,
            warnings=list(receipt.warnings),
        )

    def operations(self) -> list[Operation]:
        key = (
            Parameter(
                "Idempotency-Key",
                "The same key with the same body: the first answer again (`Idempotency-Replayed: true`), for "
                "`web.idempotency_s`; the same job as long as the broker knows it. Another body: 422",
                "header",
                Annotated[str, Meta(min_length=1, max_length=IDEMPOTENCY_KEY_CHARS_MAX, pattern="^[!-~]+$")],
            ),
        )
        errors = (400, 408, 413, 415, 422, 429, 503, 504)
        return [
            Operation(
                "POST", "/v1/jobs", self.submit_job, "Submit a job; 202 once it is durable", Scope.SUBMIT,
                body=JobSubmission,
                example=_EXAMPLE, answers=((202, views.JobAccepted),), parameters=key, errors=errors,
            ),
            Operation(
                "POST", "/v1/jobs:batch", self.submit_jobs, "Submit jobs; each has an answer of its own", Scope.SUBMIT,
                body=JobBatch,
                example={"jobs": [_EXAMPLE]}, answers=((200, BatchAnswer),), parameters=key, errors=errors,
            ),
        ]  # fmt: skip


def request_of(body: JobSubmission, job_id: bytes) -> JobRequest:
    return JobRequest(
        task=body.task,
        queue=body.queue,
        args=body.args,
        kwargs=body.kwargs,
        id=job_id,
        priority=body.priority,
        countdown=body.countdown_s,
        eta=body.eta,
        expires_s=body.expires_s,
        max_retries=body.max_retries,
        backoff_s=body.backoff_s,
        soft_time_limit_s=body.soft_time_limit_s,
        time_limit_s=body.time_limit_s,
        key=body.key,
        key_policy=body.key_policy,
        concurrency_key=body.concurrency_key,
        concurrency_limit=body.concurrency_limit,
        tags=body.tags,
        disk_bytes=body.disk_bytes,
        memory_bytes=body.memory_bytes,
        memory_limit_bytes=body.memory_limit_bytes,
        stall_after_s=body.stall_after_s,
    )


def idempotency_key(header: str | None) -> str | None:
    """The key, with or without the quotes of a structured header. Raises Problem."""
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > IDEMPOTENCY_KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        bound = f"1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"
        raise Problem(400, "malformed", f"the Idempotency-Key is not {bound}; a UUID is a good one")
    return key


def _key_reused() -> Problem:
    detail = "this Idempotency-Key was used for another job; a new job needs a new key"
    return Problem(422, "idempotency-key-reused", detail)


def _refused_item(problem: Problem) -> BatchItem:
    return BatchItem(status=problem.status, problem=problem.as_body())


def _not_submitted(error: Unavailable, job_id: bytes, *, with_key: bool) -> Problem:
    location = f"/v1/jobs/{format_id(job_id)}"
    again = "send it again with the same Idempotency-Key" if with_key else f"later, GET {location} tells"
    problem = outcome_unknown(f"whether the job was accepted is unknown; {again}. {error}")
    problem.headers["Location"] = location
    return problem

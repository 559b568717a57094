"""`zq.App` and its task decorator: a function becomes a task that can be called now or run later.

An App reads its configuration and opens its client only when something is submitted, so importing a module of tasks
costs nothing and needs no broker; a worker imports it just the same.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from zq import registry
from zq.client.requests import JobIdLike, JobRequest, KeyPolicyName, encode, expires_in_s
from zq.config import Config, WorkerSection, load
from zq.exceptions import Invalid
from zq.protocol import limits

if TYPE_CHECKING:
    from zq.client.job import Job

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
Hook = TypeVar("Hook", bound=Callable[[], Any])

CALLS_KEPT_MAX = 256
"""Kinds of calls of one task that are known to be right; a function with `**kwargs` has no end of them."""
_ANY_LIMITS = WorkerSection(time_limit_s=31_536_000)
"""For a check before the configuration is read: a soft limit alone may fit the time limit that stands there."""


class Submits(Protocol):
    """What an App needs of a client: `zq.Client`, or the one of `zq.testing`."""

    def submit_request(self, request: JobRequest) -> Job[Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What `App.task` was given. Limits that are None come from the configuration when a job is submitted."""

    queue: str
    priority: int = limits.PRIORITY_DEFAULT
    max_retries: int = 3
    backoff_s: float = 60.0
    soft_time_limit_s: float | None = None
    time_limit_s: float | None = None
    expires_s: float | None = None
    key_policy: KeyPolicyName = "refuse"
    concurrency_key: str = ""
    concurrency_limit: int = 1
    tags: Sequence[str] = ()
    disk_bytes: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    stall_after_s: float | None = None


class App:
    """A set of tasks and the broker they are submitted to.

    `config` is a Config, a path of a file, or None: then `ZQ_CONFIG`, `./zq.toml` and the `ZQ_…` variables are read, at
    the first submit. Safe to share between threads and to use after fork.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        self._source = config
        self._client: Submits | None = None
        self._lock = threading.Lock()

    @functools.cached_property
    def config(self) -> Config:
        """Raises ConfigError."""
        return self._source if isinstance(self._source, Config) else load(self._source)

    @property
    def client(self) -> Submits:
        """The client that `delay` uses, made at the first use."""
        client = self._client
        if client is None:
            from zq.client.sync import Client

            with self._lock:
                client = self._client = self._client or Client(self.config)
        return client

    def close(self) -> None:
        """Close the client. The next submit makes a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def using(self, client: Submits) -> Iterator[None]:
        """Submit through `client` in this block; it stays open. For tests, and for a client with other settings."""
        before, self._client = self._client, client
        try:
            yield
        finally:
            self._client = before

    def task(
        self,
        *,
        queue: str,
        name: str | None = None,
        priority: int = limits.PRIORITY_DEFAULT,
        max_retries: int = 3,
        backoff_s: float = 60.0,
        soft_time_limit_s: float | None = None,
        time_limit_s: float | None = None,
        expires_s: float | None = None,
        key_policy: KeyPolicyName = "refuse",
        concurrency_key: str = "",
        concurrency_limit: int = 1,
        tags: Sequence[str] = (),
        disk_bytes: int = 0,
        memory_bytes: int = 0,
        memory_limit_bytes: int = 0,
        stall_after_s: float | None = None,
    ) -> _Decorator:
        """Make a function, plain or `async def`, a task of `queue`; its name is `module.function`, or `name`.

        After a failure a job runs again up to `max_retries` times, the first time after `backoff_s`, then doubling. At
        `soft_time_limit_s` the function gets SoftTimeLimitExceeded, at `time_limit_s` its processes are ended. At most
        `concurrency_limit` of its jobs run at once, on all workers together, if it has a `concurrency_key`; only
        workers with all its `tags` run them. `key_policy` is for jobs that are submitted with a `key`.
        They wait for a worker with `disk_bytes` and `memory_bytes` left; a process tree that has grown larger than
        `memory_limit_bytes` is ended; after `stall_after_s` without a sign of life they get their soft limit.
        Raises Invalid for what no job could be submitted with.
        """
        options = TaskOptions(
            queue=queue,
            priority=priority,
            max_retries=max_retries,
            backoff_s=backoff_s,
            soft_time_limit_s=soft_time_limit_s,
            time_limit_s=time_limit_s,
            expires_s=expires_s,
            key_policy=key_policy,
            concurrency_key=concurrency_key,
            concurrency_limit=concurrency_limit,
            tags=tags,
            disk_bytes=disk_bytes,
            memory_bytes=memory_bytes,
            memory_limit_bytes=memory_limit_bytes,
            stall_after_s=stall_after_s,
        )

        def decorate(function: Callable[P, R]) -> Task[P, R]:
            task = Task(self, function, name or task_name(function), options)
            registry.register(task.name, function, options)
            return task

        return cast(_Decorator, decorate)


    def command(
        self,
        argv: Sequence[str],
        *,
        queue: str,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        ok_codes: Sequence[int] = (0,),
        reject_codes: Sequence[int] = (),
        progress: str | None = None,
        **options: Any,
    ) -> Callable[[Callable[P, Any]], Task[P, dict[str, Any]]]:
        """Make a task that runs a program; the function below it gives name and parameters, its body is not used.

        `{name}` in `argv` and `cwd` stands for a parameter. Each value stays one argument, no shell sees it, and one
        that begins with a dash is rejected unless a `--` stands before it; a list in an argument of its own becomes
        several, None none. `env` is the program's whole environment. An exit code in `ok_codes` is success, one in
        `reject_codes` sends the job to the dead letters at once, any other fails the attempt, with the end of standard
        error in its text. `progress`, a regular expression with a group `done` (and `total`, `message`), is looked for
        in each line of standard output. The result is `{"exit_code": …, "output": …}`, the last 8192 characters.
        Further options are those of `task`. Raises Invalid for a template that does not fit the parameters.
        """

        def decorate(function: Callable[P, Any]) -> Task[P, dict[str, Any]]:
            from zq.command import Command

            run: Callable[P, dict[str, Any]] = Command(
                function, argv, cwd=cwd, env=env, ok_codes=ok_codes, reject_codes=reject_codes, progress=progress
            )
            return self.task(queue=queue, **options)(run)

        return decorate

    def on_start(self, function: Hook) -> Hook:
        """Call this in every slot process of a worker before its first job: to open pools and clients.

        Plain or `async def`. A slot whose hook raises, or takes longer than a minute, is ended and another one started.
        """
        registry.register_hook("start", function)
        return function

    def on_stop(self, function: Hook) -> Hook:
        """Call this in a slot process that ends in order (recycled, drained), not in one that is killed."""
        registry.register_hook("stop", function)
        return function


class Task(Generic[P, R]):
    """A function that can be run later. Calling it runs it now, here, with no broker involved."""

    __name__: str

    def __init__(self, app: App, function: Callable[P, R], name: str, options: TaskOptions) -> None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise Invalid(f"task {name}: a generator cannot be a task; return a list, or submit a job for each item")
        self.app = app
        self.function = function
        self.name = name
        self.options = options
        self._signature = inspect.signature(function)
        self._declared: dict[str, Any] = {"task": name, **vars(options)}
        self._kinds_of_calls: set[tuple[object, ...]] = set()
        """Those that the function takes: number of positional arguments, then the names of the others."""
        functools.update_wrapper(self, function)
        encode(self.request(), _ANY_LIMITS)  # wrong options are found where they are written, not at the first submit

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Run it later, with these arguments. Returns once the job is durable.

        Raises TypeError if the function does not take these arguments, Invalid, Unavailable, Refused.
        """
        return self._submit(JobRequest(**self._declared, args=args, kwargs=kwargs))

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        expires_s: float | None = None,
        priority: int | None = None,
        queue: str | None = None,
        key: str = "",
        id: JobIdLike | None = None,
        max_retries: int | None = None,
        backoff_s: float | None = None,
        soft_time_limit_s: float | None = None,
        time_limit_s: float | None = None,
        trace: str = "",
        key_policy: KeyPolicyName | None = None,
        concurrency_key: str | None = None,
        concurrency_limit: int | None = None,
        tags: Sequence[str] | None = None,
        disk_bytes: int | None = None,
        memory_bytes: int | None = None,
        memory_limit_bytes: int | None = None,
        stall_after_s: float | None = None,
    ) -> Job[R]:
        """Run it later; the parameters are those of `JobRequest`, and None means as the task was declared.

        `expires` is Celery's word: seconds, as `expires_s`, or a datetime with a time zone.
        If a live job has `key` and keeps it (see `key_policy`), that job's handle is returned, with `deduplicated` set.
        Raises as `delay`, and Conflict if `id` was used for another job.
        """
        request = self.request(
            args=args,
            kwargs=kwargs,
            countdown=countdown,
            eta=eta,
            expires_s=expires_in_s(expires) if expires is not None and expires_s is None else expires_s,
            priority=priority,
            queue=queue,
            key=key,
            id=id,
            max_retries=max_retries,
            backoff_s=backoff_s,
            soft_time_limit_s=soft_time_limit_s,
            time_limit_s=time_limit_s,
            trace=trace,
            key_policy=key_policy,
            concurrency_key=concurrency_key,
            concurrency_limit=concurrency_limit,
            tags=tags,
            disk_bytes=disk_bytes,
            memory_bytes=memory_bytes,
            memory_limit_bytes=memory_limit_bytes,
            stall_after_s=stall_after_s,
        )
        return self._submit(request)

    def _submit(self, request: JobRequest) -> Job[R]:
        self._check_call(request.args, request.kwargs or {})
        return cast("Job[R]", self.app.client.submit_request(request))

    def _check_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError unless the function takes these arguments. How many they are and how they are named decides,
        so that each kind of call is looked at once."""
        kind = (len(args), *kwargs) if isinstance(args, (tuple, list)) else None
        if kind is None or kind not in self._kinds_of_calls:
            self._signature.bind(*args, **kwargs)
            if kind is not None and len(self._kinds_of_calls) < CALLS_KEPT_MAX:
                self._kinds_of_calls.add(kind)

    def request(self, **given: Any) -> JobRequest:
        """What `apply_async` with these parameters would submit; for `submit_many` and `AsyncClient.submit_request`."""
        return JobRequest(**{**self._declared, **{name: value for name, value in given.items() if value is not None}})

    def __repr__(self) -> str:
        return f"<zq task {self.name}>"


class AsyncTask(Task[P, R]):
    """A Task as type checkers see one whose function is `async def`: calling it gives what is to be awaited."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        raise NotImplementedError("for type checkers alone")


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...


def task_name(function: Callable[..., Any]) -> str:
    """`module.function`; for a script that is being run, the name a worker will import it under: its file's stem."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name
        elif file is not None:
            module = Path(file).stem
    return f"{module}.{function.__name__}"

"""One job in full: what it is, where it stands, and how each of its attempts went."""

from __future__ import annotations

from datetime import tzinfo

from zq.client.arguments import one_line, spec_of
from zq.monitor import cells
from zq.monitor.drawing import Line, Signs, Span, Style, bar
from zq.monitor.model import age_of, fraction_of
from zq.monitor.units import duration, moment, size
from zq.protocol.job import Outcome, State, format_id
from zq.protocol.messages import AttemptInfo, JobDetail, JobInfo, Usage, Why, WhyReason

ERROR_LINES_MAX = 200
"""Of one attempt."""


def detail_lines(
    detail: JobDetail, now_ms: int, width_cells: int, signs: Signs, zone: tzinfo, why: Why | None = None
) -> list[Line]:
    """`now_ms` is the broker's clock; times are shown in `zone`; `why` is what holds a job that waits."""
    job = detail.job
    lines: list[Line] = [(Span("Job ", Style.HEAD), Span(format_id(job.id), Style.STRONG))]
    for label, value, style in _facts(detail, now_ms, signs, zone):
        lines += _entry(label, value, style, width_cells, signs)
        if label == "state" and why is not None and why.reason is not WhyReason.NOT_WAITING:
            lines += _entry("why", why.text, Style.WARN, width_cells, signs)
            for holder in why.holders:
                lines += _entry("held by", format_id(holder), Style.WARN, width_cells, signs)
    lines += [(), (Span(f"Attempts ({len(detail.attempts)})", Style.HEAD),)]
    if not detail.attempts:
        lines.append((Span("  none has started", Style.QUIET),))
    for attempt in detail.attempts:
        lines += _attempt(attempt, job, now_ms, width_cells, signs, zone)
    return lines


def _facts(detail: JobDetail, now_ms: int, signs: Signs, zone: tzinfo) -> list[tuple[str, str, Style]]:
    job, spec = detail.job, spec_of(detail.spec)
    state_style = {State.DEAD: Style.BAD, State.RUNNING: Style.BUSY, State.DONE: Style.GOOD}.get(job.state, Style.PLAIN)
    facts = [
        ("task", job.task, Style.PLAIN),
        ("queue", f"{job.queue}  priority {job.priority}", Style.PLAIN),
        ("state", f"{job.state.label} {_since(job, now_ms)}", state_style),
        ("key", job.key, Style.PLAIN),
        ("arguments", one_line(spec.arguments) if spec else "(specification not readable)", Style.PLAIN),
        ("accepted", moment(job.accepted_ms, zone), Style.PLAIN),
        ("due", moment(job.due_ms, zone) if job.state is State.SCHEDULED else "", Style.PLAIN),
        ("started", moment(job.started_ms, zone) if job.started_ms else "", Style.PLAIN),
        ("ended", moment(job.ended_ms, zone) if job.ended_ms else "", Style.PLAIN),
    ]
    if spec is not None:
        limits = f"soft {duration(spec.soft_limit_ms / 1000)}, hard {duration(spec.hard_limit_ms / 1000)}"
        if spec.stall_after_ms:
            limits += f", stalled after {duration(spec.stall_after_ms / 1000)}"
        facts.append(("time limits", limits, Style.PLAIN))
    needs = [(job.disk_bytes, "disk"), (job.memory_bytes, "memory")]
    facts.append(("needs", ", ".join(f"{size(count)} of {what}" for count, what in needs if count), Style.PLAIN))
    if spec is not None and spec.memory_limit_bytes:
        facts.append(("memory limit", size(spec.memory_limit_bytes), Style.PLAIN))
    if job.state is State.RUNNING:
        facts.append(("progress", _progress(job, signs), Style.BUSY))
        quiet = f"no sign of life for {duration(job.quiet_ms / 1000)}" if job.stalled else ""
        facts.append(("stalled", quiet, Style.WARN))
    if job.state is State.DONE:
        kept = f"{size(len(detail.result))} of result kept" if detail.result_kept else "result dropped after its time"
        facts.append(("result", kept, Style.PLAIN))
    return [(label, value, style) for label, value, style in facts if value]


def _since(job: JobInfo, now_ms: int) -> str:
    age = duration(age_of(job, now_ms))
    return f"(due in {age})" if job.state is State.SCHEDULED else f"({age})"


def _progress(job: JobInfo, signs: Signs) -> str:
    share = fraction_of(job)
    parts = [f"{bar(share, 20, signs)} {int(share * 100)}%"] if share is not None else []
    return "  ".join([*parts, job.progress_message] if job.progress_message else parts)


def _attempt(
    attempt: AttemptInfo, job: JobInfo, now_ms: int, width_cells: int, signs: Signs, zone: tzinfo
) -> list[Line]:
    running = attempt.outcome is None
    outcome = "running" if attempt.outcome is None else attempt.outcome.name.lower().replace("_", " ")
    style = {None: Style.BUSY, Outcome.DONE: Style.GOOD}.get(attempt.outcome, Style.BAD)
    took_ms = (attempt.ended_ms or now_ms) - attempt.started_ms
    usage = job.usage if running and job.attempt == attempt.number else attempt.usage
    text = f"{moment(attempt.started_ms, zone)}  {duration(max(0, took_ms) / 1000)}  on {attempt.worker}"
    lines: list[Line] = [
        (Span(f"  {attempt.number} "), Span(outcome, style), Span(f"  {signs.clean(text)}")),
    ]
    if used := _usage(usage):
        lines.append((Span(f"    {used}", Style.QUIET),))
    error = attempt.error.splitlines()
    for line in error[-ERROR_LINES_MAX:]:
        for part in wrapped(signs.clean(line.expandtabs(4)), width_cells - 4):
            lines.append((Span("    "), Span(part, Style.WARN)))
    return lines


def _usage(usage: Usage) -> str:
    if usage == Usage():
        return ""
    return (
        f"cpu {duration(usage.cpu_ms / 1000)}  memory {size(usage.peak_rss_bytes)}  "
        f"read {size(usage.read_bytes)}  written {size(usage.write_bytes)}  processes {usage.processes}"
    )


def _entry(label: str, value: str, style: Style, width_cells: int, signs: Signs) -> list[Line]:
    parts = wrapped(signs.clean(value), width_cells - 14)
    return [(Span(f"  {label if i == 0 else '':<12}", Style.QUIET), Span(part, style)) for i, part in enumerate(parts)]


def wrapped(text: str, width_cells: int) -> list[str]:
    """`text` in pieces of at most `width_cells` cells (two, at least), cut at a blank where one is near the end."""
    room = max(2, width_cells)
    pieces: list[str] = []
    used = start = blank = 0
    for index, char in enumerate(text):
        wide = cells.char_width(char)
        if used + wide > room:
            stop = blank if blank > start + room // 2 else index
            pieces.append(text[start:stop])
            start = stop
            used = cells.width(text[start:index])
        used += wide
        if char == " ":
            blank = index + 1
    return [*pieces, text[start:]]

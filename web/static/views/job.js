// One job: where it is, why, what it was given, every attempt, what it used, and what it said when it failed.
import { ask, enc, Resource } from "../lib/api.js";
import { bulk, filterOf } from "../lib/bulk.js";
import { chart } from "../lib/charts.js";
import { bytes, duration, firstLine, rate, shortTask, since, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, nothing } from "../lib/lit.js";
import { acting, bar, bones, chip, copy, empty, fraction, heading, jobLink, memory, queueLink, section, trouble, when, workerCommand } from "../lib/parts.js";
import { state, update } from "../lib/store.js";
import { t } from "../lib/words.js";

const LIVE = new Set(["scheduled", "ready", "running"]);
const USAGE_EVERY_MS = 2000;
const OUTCOME_TONE = { done: "done", failed: "dead", rejected: "dead", handed_back: "ready", lost: "dead", cancelled: "cancelled" };
const CAUSE_TONE = { accept: "scheduled", due: "ready", dispatch: "running", finish: "done", fail: "dead", exhaust: "dead", lose: "dead", hand_back: "ready", operator_retry: "ready", stall: "dead" };
const MERGE = "zq.workers.merge.merge_recording";

export function job({ params }) {
  const { id } = params;
  let stream = null;
  let timer = 0;
  let closed = false;
  const found = new Resource((signal) => ask(`/v1/jobs/${enc(id)}`, { signal }), changed, 700);
  const usage = new Resource((signal) => ask(`/page/jobs/${enc(id)}/usage`, { signal }), update, USAGE_EVERY_MS);

  function changed() {
    update();
    if (found.data && !stream && !closed && !document.hidden) listen();
    if (found.data?.job.state === "running") tick();
  }

  // Its steps and progress come by its own stream; what it has used is measured each second, and asked for while shown.
  function listen() {
    if (!LIVE.has(found.data.job.state)) {
      usage.refresh();
      return;
    }
    stream = new EventSource(`/v1/jobs/${enc(id)}/events?after=${found.data.history.at(-1)?.number ?? 0}`);
    stream.onmessage = () => found.soon();
    stream.addEventListener("gap", () => found.soon());
    stream.addEventListener("progress", ({ data }) => {
      if (found.data) found.data.job.progress = JSON.parse(data);
      update();
    });
    stream.addEventListener("end", () => {
      stop();
      found.soon();
      usage.soon();
    });
  }

  function tick() {
    if (timer || closed) return;
    timer = setTimeout(() => {
      timer = 0;
      if (!document.hidden && found.data?.job.state === "running") {
        usage.refresh();
        found.refresh();
      } else if (document.hidden) tick();
    }, USAGE_EVERY_MS);
  }

  function stop() {
    stream?.close();
    stream = null;
  }

  // A browser has six connections for a server, for all its tabs: one that nobody looks at takes none.
  function seen() {
    if (document.hidden) stop();
    else found.refresh();
  }

  const act = async (action) => (await bulk(action, filterOf({ ids: [id] }))) !== undefined && found.refresh();
  document.addEventListener("visibilitychange", seen);
  found.refresh();
  usage.refresh();
  return {
    title: () => (found.data ? shortTask(found.data.job.task) : t("job")),
    // A step that came while the stream was down is seen at the next picture.
    picture: () => found.data && LIVE.has(found.data.job.state) && stream?.readyState !== EventSource.OPEN && found.soon(),
    close() {
      closed = true;
      document.removeEventListener("visibilitychange", seen);
      clearTimeout(timer);
      stop();
      found.close();
      usage.close();
    },
    render() {
      if (found.waiting) return html`${heading(t("job"), { crumb: html`<a href="/jobs">${t("nav.jobs")}</a>` })}<section class="card">${bones(7)}</section>`;
      if (!found.data) return html`${heading(t("job"), { crumb: html`<a href="/jobs">${t("nav.jobs")}</a>` })}<section class="card">${found.error.status === 404 ? empty("search", t("job.unknown"), t("job.unknown-text")) : trouble(found.error)}</section>`;
      return view(found.data, usage.data, act);
    },
  };
}

function view(detail, usage, act) {
  const one = detail.job;
  const can = { cancel: LIVE.has(one.state), retry: ["dead", "cancelled", "expired"].includes(one.state), drop: !LIVE.has(one.state) };
  const button = (action, name, tone) => (can[action] ? html`<button type="button" class="button ${tone}" @click=${() => act(action)}>${icon(name)}${t(`bulk.${action}`)}</button>` : nothing);
  return html`${heading(html`${shortTask(one.task)} ${chip(one.state)}`, {
      crumb: html`<a href="/jobs">${t("nav.jobs")}</a>`,
      sub: html`<span class="id mono">${one.id}${copy(one.id)}</span>`,
      acts: acting(html`${button("retry", "retry", "primary")}${button("cancel", "stop", "bad")}${button("drop", "drop", "bad")}`),
    })}
    ${detail.why && detail.why.reason !== "not_waiting" ? whyOf(detail.why, one) : nothing}
    ${one.state === "running" ? progressCard(one) : nothing}
    <div class="split">
      <div class="pile">
        ${one.error && one.state !== "done" ? section(t("job.error"), html`<div class="body"><pre class="code bad error" tabindex="0">${one.error}</pre></div>`, { acts: copy(one.error, t("copy.error")) }) : nothing}
        ${section(t("job.timeline"), html`<div class="body">${gantt(detail)}${timeline(detail)}</div>`, { note: one.attempt ? t("job.attempts", { n: one.attempt, of: whole(one.attempts_max) }) : t("job.attempts-none", { n: one.attempts_max }) })}
        ${usage && usage.points.length > 1 ? section(t("job.usage"), usageCharts(usage), { note: t("job.usage-note", { n: String(usage.attempt) }) }) : nothing}
      </div>
      <div class="pile">
        ${section(t("job.facts"), facts(detail))}
        ${mergeLink(detail)}
        ${section(t("job.arguments"), html`<div class="body">${argumentsOf(detail)}</div>`)}
        ${one.state === "done" ? section(t("job.result"), html`<div class="body">${detail.result_kept ? html`<pre class="code" tabindex="0">${JSON.stringify(detail.result, null, 2)}</pre>` : html`<p class="dim">${t("job.result-gone")}</p>`}</div>`) : nothing}
      </div>
    </div>`;
}

// What the words say already is not said twice; what mends it is said instead.
function whyOf(why, one) {
  const words = t.maybe(`why.${why.reason}`, { time: duration(why.wait_s) });
  return html`<div class="why" role="status">${icon("schedules")}<div><strong>${t("why.title")}</strong> ${words || why.text}
    ${why.reason === "no_consumer" ? html`<span class="under">${t("alarm.start")} <code>${workerCommand(one.queue)}</code>${copy(workerCommand(one.queue), t("copy.command"))}</span>` : why.reason === "paused" ? html`<span class="under">${queueLink(one.queue)}</span>` : words && why.text && why.reason !== "not_due" ? html`<span class="under">${why.text}</span>` : nothing}
    ${why.holders.length ? html`<p>${t("why.holders")} ${why.holders.map((id) => jobLink(id))}</p>` : nothing}</div></div>`;
}

function progressCard(one) {
  const part = fraction(one);
  const runs = since(one.started_at);
  const left = part && part > 0.02 && part < 1 ? (runs * (1 - part)) / part : null;
  return html`<section class="card big-progress" aria-label=${t("job.progress")}>
    <div class="row"><strong>${part === null ? t("job.runs", { time: duration(runs) }) : `${Math.floor(100 * part)} %`}</strong>
      <span class="dim">${part === null ? nothing : html`${t("job.runs", { time: duration(runs) })}${left === null ? nothing : ` · ${t("job.left", { time: duration(left) })}`}`}</span></div>
    ${part === null ? nothing : bar(part, t("job.progress-label", { percent: `${Math.floor(100 * part)} %` }), "wide")}
    <div class="row dim"><span>${one.stalled ? html`<span class="error">${t("job.stalled", { time: duration(one.quiet_s) })}</span>` : one.progress?.message ?? ""}</span>${one.time_limit_s ? html`<span>${t("job.limit", { time: duration(one.time_limit_s) })}</span>` : nothing}</div></section>`;
}

function gantt({ attempts }) {
  if (attempts.length < 2) return nothing;
  const begin = Math.min(...attempts.map((a) => new Date(a.started_at).getTime()));
  const ends = attempts.map((a) => (a.ended_at ? new Date(a.ended_at).getTime() : Date.now() + state.skewMs));
  const span = Math.max(1, Math.max(...ends) - begin);
  return html`<div class="gantt" aria-hidden="true">${attempts.map((a, index) => {
    const from = new Date(a.started_at).getTime() - begin;
    const length = ends[index] - begin - from;
    const tone = a.outcome ? OUTCOME_TONE[a.outcome] : "running";
    return html`<div class="row"><span>#${a.number}</span><span class="lane"><i class="b-${tone === "cancelled" ? "dim" : tone}" .style=${`left:${((100 * from) / span).toFixed(2)}%;width:${((100 * length) / span).toFixed(2)}%`}></i></span><span>${duration(length / 1000)}</span></div>`;
  })}</div><br>`;
}

// Newest first; an attempt's own words stand at the step that ended it.
function timeline({ history, attempts }) {
  if (!history.length) return html`<p class="dim">${t("job.history-gone")}</p>`;
  const byNumber = new Map(attempts.map((a) => [a.number, a]));
  const ending = new Set(["finish", "fail", "exhaust", "lose", "hand_back", "cancel"]);
  return html`<ol class="timeline">${[...history].reverse().map((step, index, all) => {
    const before = all[index + 1];
    const attempt = ending.has(step.cause) ? byNumber.get(step.attempt) : undefined;
    const tone = step.cause === "cancel" || step.cause === "replace" ? "" : CAUSE_TONE[step.cause] ?? "";
    return html`<li><span class="bead ${tone}">${step.cause === "dispatch" || attempt ? step.attempt : ""}</span><div>
      <div class="line"><strong>${t(`cause.${step.cause}`)}</strong> ${when(step.at)} ${later(step, before)}${step.worker ? html`<span class="dim">${step.worker}</span>` : nothing}</div>
      ${attempt ? ended(attempt, step) : step.detail ? html`<p class="dim">${firstLine(step.detail)}</p>` : nothing}</div></li>`;
  })}</ol>`;
}

// How long after the step before it.
function later(step, before) {
  const s = before ? (new Date(step.at) - new Date(before.at)) / 1000 : 0;
  return s > 0 ? html`<span class="dim num">+${duration(s)}</span>` : nothing;
}

function ended(attempt, step) {
  const { usage } = attempt;
  const took = (new Date(attempt.ended_at) - new Date(attempt.started_at)) / 1000;
  const used = [t("job.took", { time: duration(took) }), t("job.cpu", { time: duration(usage.cpu_s) })];
  if (usage.peak_rss_bytes) used.push(t("job.peak", { size: bytes(usage.peak_rss_bytes) }));
  if (usage.read_bytes || usage.write_bytes) used.push(t("job.io", { read: bytes(usage.read_bytes), write: bytes(usage.write_bytes) }));
  const error = attempt.error || step.detail;
  return html`<p class="dim num">${used.join(" · ")}</p>
    ${error ? (error.includes("\n") ? html`<details><summary><span class="error">${firstLine(error)}</span></summary><pre class="code bad" tabindex="0">${error}</pre></details>` : html`<p class="error">${error}</p>`) : nothing}`;
}

function usageCharts({ points }) {
  const at = points.map((point) => point.at_ms);
  const cores = points.map((point, index) => {
    if (!index) return null;
    const before = points[index - 1];
    return Math.max(0, ((point.cpu_s - before.cpu_s) * 1000) / Math.max(1, point.at_ms - before.at_ms));
  });
  const times = (ms) => (ms === at[0] ? t("unit.s", { n: 0 }) : duration((ms - at[0]) / 1000));
  const now = (name, value) => html`${name} <b>${value}</b>`;
  return html`${chart({ id: "cpu", series: [{ name: t("job.cores"), tone: "running", values: cores }], at, unit: "", label: t("job.cores"), format: rate, height: "6.5rem", times, caption: now(t("job.cores"), rate(cores.at(-1) ?? 0)) })}
    ${chart({ id: "memory", series: [{ name: t("job.memory"), tone: "scheduled", values: points.map((p) => p.peak_rss_bytes) }], at, unit: "", label: t("job.memory"), format: bytes, kind: "bytes", height: "6.5rem", times, caption: now(t("job.memory"), bytes(points.at(-1).peak_rss_bytes)) })}`;
}

function facts(detail) {
  const one = detail.job;
  const rows = [
    [t("task"), html`<span class="mono">${one.task}</span>`, "whole"],
    [t("queue"), queueLink(one.queue)],
    [t("job.priority"), whole(one.priority)],
    [t("job.accepted"), when(one.accepted_at)],
    one.state === "scheduled" && [t("job.due"), when(one.due_at)],
    one.started_at && [t("job.started"), when(one.started_at)],
    one.ended_at && [t("job.ended"), when(one.ended_at)],
    one.worker && [t("worker"), one.worker, "whole"],
    one.key && [t("job.key"), html`<span class="mono">${one.key}</span>`, "whole"],
    one.concurrency_key && [t("job.concurrency"), html`<span class="mono">${one.concurrency_key}</span> × ${detail.concurrency_limit}`],
    one.tags.length && [t("job.tags"), one.tags.map((tag) => html`<span class="tag">${tag}</span> `)],
    [t("job.limits"), `${duration(detail.soft_time_limit_s)} / ${duration(detail.time_limit_s)}`],
    [t("job.retries"), detail.max_retries ? t("job.retries-value", { n: detail.max_retries, time: duration(detail.backoff_s) }) : t("job.retries-none")],
    one.usage.peak_rss_bytes && [t("job.peak-short"), memory(one.usage.peak_rss_bytes)],
    one.usage.cpu_s && [t("job.cpu-short"), duration(one.usage.cpu_s)],
  ];
  return html`<div class="body"><dl class="facts">${rows.filter(Boolean).map(([name, value, width = ""]) => html`<div class=${width}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></div>`;
}

function argumentsOf({ args, kwargs }) {
  if (args === null) return html`<p class="dim">${t("job.arguments-unreadable")}</p>`;
  if (!args.length && !Object.keys(kwargs).length) return html`<p class="dim">${t("job.arguments-none")}</p>`;
  const text = JSON.stringify(args.length ? { args, kwargs } : kwargs, null, 2);
  return html`<pre class="code" tabindex="0">${text}</pre>`;
}

function mergeLink({ job: one, kwargs }) {
  if (one.task !== MERGE || !kwargs?.exam_id || !kwargs?.student_id) return nothing;
  const href = `/exams/${enc(kwargs.exam_id)}/students/${enc(kwargs.student_id)}`;
  return html`<section class="card"><div class="body link"><a class="main" href=${href}>${icon("video")} ${t("job.recording", { name: kwargs.student_name || kwargs.student_id })}</a></div></section>`;
}

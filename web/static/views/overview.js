// Everything at a glance: what is wrong, how much, how fast, what runs now.
import { ask, Resource } from "../lib/api.js";
import { chart, legend, spark } from "../lib/charts.js";
import { dayAndTime, duration, rate, short, shortTask, since, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, nothing } from "../lib/lit.js";
import { bar, bones, copy, count, empty, fraction, heading, queueLink, section, shown, slotsOf, when } from "../lib/parts.js";
import { setQuery } from "../lib/router.js";
import { state, totals, update } from "../lib/store.js";
import { t } from "../lib/words.js";

export const SPANS = [[900, "15min"], [3600, "1h"], [21600, "6h"]];
const CHART_STEP_MS = 10000;

// Points of one queue, or of all: asked for again when there is a new one. Unless a span was chosen, the shortest is
// shown until more than that is known.
export function chartOf(queue, query) {
  const chosen = () => (SPANS.some(([s]) => String(s) === query().get("span")) ? Number(query().get("span")) : 0);
  const known = () => (found.data ? (found.data.at_ms.at(-1) - found.data.begins_at_ms) / 1000 : 0);
  const span = () => chosen() || (known() > SPANS[0][0] ? SPANS[1][0] : SPANS[0][0]);
  const path = () => `/page/chart?span_s=${span()}${queue ? `&queue=${encodeURIComponent(queue)}` : ""}`;
  const found = new Resource((signal) => ask(path(), { signal }), update);
  return { found, span, follow: () => found.follow(`${span()} ${Math.floor(Date.now() / CHART_STEP_MS)}`) };
}

export const spanPicker = (span) =>
  html`<div class="segments" role="group" aria-label=${t("chart.span")}>${SPANS.map(([s, name]) => html`<button type="button" aria-pressed=${s === span} @click=${() => setQuery({ span: String(s) })}>${t(`span.${name}`)}</button>`)}</div>`;

export function flowChart(data, id) {
  const series = [
    { name: t("chart.done"), tone: "done", values: data.done_per_s },
    { name: t("chart.accepted"), tone: "accent", values: data.accepted_per_s },
    { name: t("chart.failed"), tone: "dead", values: data.failed_per_s },
  ];
  return { series, figure: chart({ id, series, at: data.at_ms, begins: data.begins_at_ms, unit: t("unit.per-s"), label: t("chart.flow"), format: rate }) };
}

export function backlogChart(data, id) {
  const series = [
    { name: t("state.ready"), tone: "ready", values: data.ready },
    { name: t("state.running"), tone: "running", values: data.running },
    { name: t("state.scheduled"), tone: "scheduled", values: data.scheduled },
  ];
  return { series, figure: chart({ id, series, at: data.at_ms, begins: data.begins_at_ms, unit: "", label: t("chart.backlog"), format: short, kind: "whole" }) };
}

export const beginsNote = (data) => {
  const first = data.at_ms[0];
  return data.begins_at_ms > first ? t("chart.begins", { time: dayAndTime(data.begins_at_ms) }) : nothing;
};

export function alarm(one) {
  const values = { name: one.subject, n: one.number, time: duration(one.number), size: `${(one.number / 1073741824).toFixed(1)} GiB` };
  const link = { unserved: `/queues/${encodeURIComponent(one.subject)}`, paused: `/queues/${encodeURIComponent(one.subject)}`, worker_silent: "/workers" }[one.kind];
  return html`<li class="alarm ${one.level}">${icon("dead")}<strong>${t(`alarm.${one.kind}`, values)}</strong>
    ${one.kind === "unserved" ? html`<span>${t("alarm.start")} <code>${one.detail}</code>${copy(one.detail, t("copy.command"))}</span>` : nothing}
    ${one.kind === "broker_away" ? html`<span>${one.detail}: <code>zq status</code></span>` : nothing}
    ${link ? html`<a href=${link}>${t("look")}</a>` : nothing}</li>`;
}

export function overview({ query }) {
  const points = chartOf("", query);
  const running = new Resource((signal) => ask("/v1/jobs?state=running&limit=8&arguments=true", { signal }), update);
  const groups = new Resource((signal) => ask("/v1/dead/groups", { signal }), update, 4000);

  return {
    title: () => t("nav.overview"),
    picture(live) {
      const sum = totals(live.queues);
      points.follow();
      running.follow(`${sum.running} ${sum.done} ${sum.dead} ${sum.running ? Math.floor(Date.now() / 4000) : 0}`);
      groups.follow(`${sum.dead} ${sum.dead ? Math.floor(Date.now() / 30000) : 0}`);
    },
    query: () => points.found.refresh(),
    close: () => [points.found, running, groups].forEach((one) => one.close()),
    render() {
      const live = state.live;
      return html`${heading(t("nav.overview"), { sub: t("overview.sub"), acts: spanPicker(points.span()) })}
        ${live?.alarms.length ? html`<div role="alert" aria-relevant="additions" aria-atomic="false"><ul class="alarms">${live.alarms.map(alarm)}</ul></div>` : nothing}
        ${tiles(live, points.found.data)}
        <div class="columns">
          ${panel(t("chart.flow"), points.found, (data) => flowChart(data, "flow"), rate, t("unit.per-s"))}
          ${panel(t("chart.backlog"), points.found, (data) => backlogChart(data, "backlog"), short, "")}
        </div>
        ${section(t("nav.queues"), live ? queues(live) : bones(3), { acts: html`<a class="button small plain" href="/queues">${t("all")}</a>` })}
        <div class="columns">
          ${section(t("overview.running"), shown(running, now, 3), { acts: html`<a class="button small plain" href="/jobs?state=running">${t("all")}</a>` })}
          ${section(t("overview.dead"), shown(groups, failures, 3), { acts: html`<a class="button small plain" href="/dead">${t("all")}</a>` })}
        </div>`;
    },
  };
}

export function panel(title, resource, made, format, unit) {
  if (resource.data === null) return section(title, shown(resource, () => nothing, 5));
  const { series, figure } = made(resource.data);
  const note = beginsNote(resource.data);
  return section(title, html`<div class="legend-row">${legend(series, format, unit)}</div>${figure}`, { foot: note });
}

function tiles(live, points) {
  if (!live) return html`<div class="tiles" aria-hidden="true">${[1, 2, 3, 4, 5].map(() => html`<div class="card tile">${bones(2)}</div>`)}</div>`;
  const sum = totals(live.queues);
  const perS = Object.values(live.rates).reduce((total, one) => total + one.done_per_s, 0);
  const workers = live.workers.length;
  const oldest = Math.max(0, ...live.queues.map((queue) => queue.oldest_ready_s));
  const line = (values, tone) => (points ? spark(values(points), tone) : nothing);
  return html`<div class="tiles">
    ${tile("/jobs?state=ready", t("tile.waiting"), short(sum.ready), sum.ready ? t("tile.oldest", { time: duration(oldest) }) : t("tile.scheduled", { n: sum.scheduled }), line((p) => p.ready, "ready"))}
    ${tile("/jobs?state=running", t("tile.running"), short(sum.running), t("tile.slots", { free: sum.free, slots: sum.slots }), line((p) => p.running, "running"))}
    ${tile("/jobs?state=done", t("tile.done"), short(sum.done), t("tile.per-minute", { rate: rate(60 * perS) }), line((p) => p.done_per_s, "done"))}
    ${tile("/dead", t("tile.dead"), short(sum.dead), sum.dead ? t("tile.dead-some") : t("tile.dead-none"), sum.dead ? line((p) => p.failed_per_s, "dead") : nothing, sum.dead ? "bad" : "")}
    ${tile("/workers", t("tile.workers"), whole(workers), t("tile.queues", { n: live.queues.length }))}
  </div>`;
}

const tile = (href, name, value, note, line = nothing, tone = "") =>
  html`<a class="card tile ${tone}" href=${href}><span class="name">${name}</span><strong>${value}</strong><span class="note">${note}</span>${line}</a>`;

function queues(live) {
  if (!live.queues.length) return empty("queues", t("queues.none"), html`<code>zq submit TASK --queue NAME</code>`);
  return html`<div class="scroll"><table class="cards">
    <thead><tr><th>${t("queue")}</th><th class="r">${t("state.ready")}</th><th class="r">${t("col.oldest")}</th><th>${t("col.slots")}</th><th class="r">${t("col.done-rate")}</th><th class="r">${t("state.done")}</th><th class="r">${t("state.dead")}</th></tr></thead>
    <tbody>${live.queues.map((queue) => html`<tr>
      <td><span class="main">${queueLink(queue.name)}</span> ${queueState(queue)}</td>
      <td class="r" data-label=${t("state.ready")}>${count(queue.ready)}</td>
      <td class="r" data-label=${t("col.oldest")}>${queue.ready ? duration(queue.oldest_ready_s) : html`<span class="zero">–</span>`}</td>
      <td data-label=${t("col.slots")}>${slotsOf(queue)}</td>
      <td class="r" data-label=${t("col.done-rate")}>${rate(live.rates[queue.name]?.done_per_s)}</td>
      <td class="r" data-label=${t("state.done")}>${count(queue.done)}</td>
      <td class="r" data-label=${t("state.dead")}>${count(queue.dead)}</td>
    </tr>`)}</tbody></table></div>`;
}

export function queueState(queue) {
  if (queue.paused) return html`<span class="chip warn">${t("queue.paused")}</span>`;
  if (queue.ready && !queue.consumers) return html`<span class="chip bad">${t("queue.unserved")}</span>`;
  return nothing;
}

function now({ jobs }) {
  if (!jobs.length) return empty("jobs", t("overview.idle"), t("overview.idle-text"));
  return html`<ul class="now">${jobs.map((job) => {
    const part = fraction(job);
    return html`<li><span><a class="main" href="/jobs/${job.id}">${shortTask(job.task)}</a> <span class="dim">${job.key || job.arguments || job.queue}</span></span>
      <span class="dim num">${part === null ? "" : `${Math.floor(100 * part)} % · `}${duration(since(job.started_at))}</span>
      ${part === null ? nothing : bar(part, t("job.progress-label", { percent: `${Math.floor(100 * part)} %` }))}</li>`;
  })}</ul>`;
}

function failures({ groups }) {
  if (!groups.length) return empty("check", t("dead.none"), t("dead.none-text"));
  return html`<ul class="now">${groups.slice(0, 5).map((group) => html`<li>
    <a class="error clip" href="/dead?group=${group.key}">${group.error || t("dead.no-error")}</a>
    <span class="num"><b>${whole(group.jobs)}</b></span>
    <span class="under">${shortTask(group.task)} · ${group.queue} · ${when(group.newest_at)}</span></li>`)}</ul>`;
}

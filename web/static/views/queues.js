// Queues: what waits, who serves, and the bounds that an operator sets.
import { enc, post, ask } from "../lib/api.js";
import { confirm } from "../lib/ask.js";
import { duration, rate, short, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, nothing } from "../lib/lit.js";
import { acting, bones, count, empty, heading, queueLink, run, section, slotsOf, workerCommand } from "../lib/parts.js";
import { state } from "../lib/store.js";
import { t } from "../lib/words.js";
import { backlogChart, chartOf, flowChart, panel, queueState, spanPicker } from "./overview.js";

export function limitsOf(queue) {
  const found = [];
  if (queue.rate_per_s) found.push(t("limit.rate", { n: rate(queue.rate_per_s) }));
  if (queue.running_max) found.push(t("limit.running", { n: queue.running_max }));
  if (queue.length_max) found.push(t("limit.length", { n: queue.length_max }));
  return found;
}

async function pause(queue) {
  const path = `/v1/queues/${enc(queue.name)}`;
  if (queue.paused) return run(() => post(`${path}:resume`), t("queue.resumed", { name: queue.name }));
  return confirm({
    title: t("queue.pause-ask", { name: queue.name }),
    body: () => html`<p>${t("queue.pause-text", { n: queue.ready + queue.scheduled })}</p>`,
    label: t("queue.pause"),
    act: () => post(`${path}:pause`),
  });
}

function setLimits(queue) {
  const field = (name, value, step) => html`<label class="field">${t(`limit.${name}-field`)}
    <input name=${name} type="number" min="0" step=${step} inputmode="decimal" .value=${value ? String(value) : ""} placeholder=${t("limit.none")}></label>`;
  return confirm({
    title: t("limit.ask", { name: queue.name }),
    body: () => html`<p class="dim">${t("limit.text")}</p>${field("rate", queue.rate_per_s, "any")}${field("running", queue.running_max, 1)}${field("length", queue.length_max, 1)}`,
    label: t("limit.set"),
    act: (form) =>
      ask(`/v1/queues/${enc(queue.name)}`, {
        method: "PATCH",
        body: { rate_per_s: Number(form.get("rate")), running_max: Number(form.get("running")), length_max: Number(form.get("length")) },
      }),
  });
}

export const queueActs = (queue, small = "small") =>
  acting(html`<button type="button" class="button ${small}" aria-label="${t(queue.paused ? "queue.resume" : "queue.pause")}: ${queue.name}" @click=${() => pause(queue)}>${icon(queue.paused ? "play" : "pause")}${t(queue.paused ? "queue.resume" : "queue.pause")}</button>
    <button type="button" class="button ${small}" aria-label="${t("limit.button")}: ${queue.name}" @click=${() => setLimits(queue)}>${icon("sliders")}${t("limit.button")}</button>`);

export function queues() {
  return {
    title: () => t("nav.queues"),
    render() {
      const live = state.live;
      return html`${heading(t("nav.queues"), { sub: t("queues.sub") })}
        <section class="card">${!live ? bones(5) : live.queues.length ? table(live) : empty("queues", t("queues.none"), html`<code>zq submit TASK --queue NAME</code>`)}</section>`;
    },
  };
}

function table(live) {
  return html`<div class="scroll"><table class="cards">
    <thead><tr><th>${t("queue")}</th><th class="r">${t("state.ready")}</th><th class="r">${t("col.oldest")}</th><th>${t("col.slots")}</th><th class="r">${t("state.scheduled")}</th><th class="r">${t("col.done-rate")}</th><th class="r">${t("state.dead")}</th><th>${t("col.limits")}</th><th><span class="hidden">${t("col.acts")}</span></th></tr></thead>
    <tbody>${live.queues.map((queue) => html`<tr>
      <td><span class="main">${queueLink(queue.name)}</span> ${queueState(queue)}<span class="under">${t("queues.served", { n: queue.consumers })}</span></td>
      <td class="r" data-label=${t("state.ready")}>${count(queue.ready)}</td>
      <td class="r" data-label=${t("col.oldest")}>${queue.ready ? duration(queue.oldest_ready_s) : html`<span class="zero">–</span>`}</td>
      <td data-label=${t("col.slots")}>${slotsOf(queue)}</td>
      <td class="r" data-label=${t("state.scheduled")}>${count(queue.scheduled)}</td>
      <td class="r" data-label=${t("col.done-rate")}>${rate(live.rates[queue.name]?.done_per_s)}</td>
      <td class="r" data-label=${t("state.dead")}>${queue.dead ? html`<a href="/dead?queue=${enc(queue.name)}">${whole(queue.dead)}</a>` : count(0)}</td>
      <td data-label=${t("col.limits")}>${limitsOf(queue).join(", ") || html`<span class="zero">–</span>`}</td>
      <td class="tight wide"><span class="acts">${queueActs(queue)}</span></td>
    </tr>`)}</tbody></table></div>`;
}

const STATES = ["running", "ready", "scheduled", "done", "dead", "cancelled", "expired"];

export function queue({ params, query }) {
  const points = chartOf(params.queue, query);
  return {
    title: () => params.queue,
    picture: () => points.follow(),
    query: () => points.found.refresh(),
    close: () => points.found.close(),
    render() {
      const live = state.live;
      const one = live?.queues.find((queue) => queue.name === params.queue);
      const crumb = html`<a href="/queues">${t("nav.queues")}</a>`;
      if (live && !one) return html`${heading(params.queue, { crumb })}<section class="card">${empty("queues", t("queue.unknown"), t("queue.unknown-text"))}</section>`;
      return html`${heading(html`${params.queue} ${one ? queueState(one) : nothing}`, { crumb, acts: one ? html`${spanPicker(points.span())}${queueActs(one, "")}` : nothing })}
        ${one ? facts(one, live) : html`<section class="card">${bones(2)}</section>`}
        <div class="columns">
          ${panel(t("chart.flow"), points.found, (data) => flowChart(data, `flow ${params.queue}`), rate, t("unit.per-s"))}
          ${panel(t("chart.backlog"), points.found, (data) => backlogChart(data, `backlog ${params.queue}`), short, "")}
        </div>
        ${section(t("queue.workers"), one ? served(live, one) : bones(2))}`;
    },
  };
}

function facts(one, live) {
  const fact = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
  const states = STATES.map((name) => html`<a href="/jobs?queue=${enc(one.name)}&state=${name}">${t(`state.${name}`)} <b>${short(one[name])}</b></a>`);
  return html`<section class="card"><div class="body"><p class="segments">${states}</p></div><div class="body"><dl class="facts">
    ${fact(t("col.slots"), slotsOf(one))}
    ${fact(t("col.oldest"), one.ready ? duration(one.oldest_ready_s) : "–")}
    ${fact(t("col.done-rate"), rate(live.rates[one.name]?.done_per_s))}
    ${fact(t("queue.accepted"), whole(one.accepted))}
    ${fact(t("col.limits"), limitsOf(one).join(", ") || t("limit.none"))}
  </dl></div></section>`;
}

function served(live, one) {
  const serving = live.workers.filter((worker) => worker.queues.some((item) => item.queue === one.name));
  if (!serving.length) return empty("workers", t("queue.no-worker"), html`<code>${workerCommand(one.name)}</code>`);
  return html`<ul class="now">${serving.map((worker) => html`<li><span class="main">${worker.name}</span>
    <span class="dim num">${t("worker.serves", { n: worker.queues.find((item) => item.queue === one.name).slots })} ${worker.tags.map((tag) => html`<span class="tag">${tag}</span>`)}</span></li>`)}</ul>`;
}

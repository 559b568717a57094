// Jobs by state and filter. The filter is the address; what is picked can be acted upon, or all that fit.
import { ask, mayOperate, Resource } from "../lib/api.js";
import { bulk, filterOf } from "../lib/bulk.js";
import { duration, exact, firstLine, short, shortTask, since, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, live as current, nothing, repeat } from "../lib/lit.js";
import { chip, empty, heading, jobLink, progressOf, queueLink, shown, when } from "../lib/parts.js";
import { go, setQuery } from "../lib/router.js";
import { isId, parse, write } from "../lib/search.js";
import { state, totals, update } from "../lib/store.js";
import { t } from "../lib/words.js";

const STATES = ["running", "ready", "scheduled", "done", "dead", "cancelled", "expired"];
// Of the others, counts tell how many there ever were, not how many are still kept.
const COUNTED = new Set(["running", "ready", "scheduled", "dead"]);
const ROWS = 50;
const ROWS_REFRESHED_MAX = 500;
const ACTIONS = { running: ["cancel"], ready: ["cancel"], scheduled: ["cancel"], done: ["drop"], dead: ["retry", "drop"], cancelled: ["retry", "drop"], expired: ["retry", "drop"], "": ["cancel", "retry"] };
const ICONS = { cancel: "stop", retry: "retry", drop: "drop" };

export function jobs({ query }) {
  const picked = new Set();
  let everything = false;
  let next = null;
  let scanned = 0;

  const asked = () => ({
    state: query().get("state") ?? "",
    queue: query().get("queue") ?? "",
    task: query().get("task") ?? "",
    error: query().get("error") ?? "",
    where: query().getAll("where"),
  });

  function path(cursor, limit) {
    const { where, ...named } = asked();
    const text = new URLSearchParams({ limit: String(limit), arguments: "true" });
    for (const [name, value] of Object.entries(named)) if (value) text.set(name, value);
    for (const one of where) text.append("where", one);
    if (cursor) text.set("cursor", cursor);
    return `/v1/jobs?${text}`;
  }

  async function load(signal) {
    const rows = found.stale ? ROWS : Math.min(ROWS_REFRESHED_MAX, Math.max(ROWS, found.data?.length ?? 0));
    const page = await ask(path("", rows), { signal });
    next = page.next;
    scanned = page.scanned;
    return page.jobs;
  }

  async function more() {
    const page = await ask(path(next, ROWS));
    const seen = new Set(found.data.map((job) => job.id));
    found.data = [...found.data, ...page.jobs.filter((job) => !seen.has(job.id))];
    next = page.next;
    scanned += page.scanned;
    update();
  }

  const found = new Resource(load, update);

  function restart() {
    picked.clear();
    everything = false;
    found.restart();
  }

  async function act(action) {
    const filter = everything ? filterOf(asked()) : filterOf({ ids: [...picked] });
    if ((await bulk(action, filter)) !== undefined) restart();
  }

  function search(event) {
    event.preventDefault();
    const text = new FormData(event.target).get("search").trim();
    if (isId(text)) return go(`/jobs/${text.toLowerCase()}`);
    const { state: named, ...rest } = parse(text);
    setQuery({ ...rest, ...(named && { state: named }) });
  }

  return {
    title: () => t("nav.jobs"),
    picture(live) {
      const { state: one, queue } = asked();
      const sum = totals(queue ? live.queues.filter((q) => q.name === queue) : live.queues);
      const moving = sum.running && (!one || one === "running") ? Math.floor(Date.now() / 3000) : 0;
      found.follow(one ? `${one} ${sum[one]} ${one === "done" ? "" : sum.accepted + sum.done} ${moving}` : `${JSON.stringify(sum)} ${moving}`);
    },
    query: restart,
    close: () => found.close(),
    render() {
      const filter = asked();
      const sum = state.live ? totals(filter.queue ? state.live.queues.filter((q) => q.name === filter.queue) : state.live.queues) : null;
      const tab = (name, n) => html`<button type="button" aria-pressed=${filter.state === name} @click=${() => setQuery({ state: name })}>${name ? t(`state.${name}`) : t("all")}${n === null ? nothing : html` <b>${short(n)}</b>`}</button>`;
      return html`${heading(t("nav.jobs"), { sub: t("jobs.sub") })}
        <div class="filters"><div class="segments" role="group" aria-label=${t("jobs.state")}>${tab("", null)}${STATES.map((name) => tab(name, sum && COUNTED.has(name) ? sum[name] : null))}</div></div>
        <form class="filters" role="search" @submit=${search}>
          <label class="search">${icon("search")}<span class="hidden">${t("jobs.search")}</span><input name="search" type="search" autocomplete="off" spellcheck="false" data-search placeholder=${t("jobs.search-hint")} .value=${current(document.activeElement?.dataset.search !== undefined ? document.activeElement.value : write(filter))}><kbd aria-hidden="true">/</kbd></label>
          <button class="button" type="submit">${t("jobs.find")}</button>
          ${write(filter) ? html`<button class="button plain" type="button" @click=${() => { document.activeElement?.blur(); setQuery({ queue: "", task: "", error: "", where: [] }); }}>${t("jobs.clear")}</button>` : nothing}
        </form>
        <section class="card">${shown(found, (rows) => (rows.length ? table(rows, filter) : none(filter)), 8)}
          ${found.data?.length ? foot(found.data) : nothing}
          ${picked.size || everything ? bar(filter) : nothing}
        </section>`;
    },
  };

  function none(filter) {
    const narrowed = write(filter);
    if (next) return html`${empty("search", t("jobs.none-yet", { n: scanned }), html`<button class="button" type="button" @click=${more}>${t("jobs.look-on")}</button>`)}`;
    if (narrowed) return empty("search", t("jobs.none-found"), t("jobs.none-found-text"));
    return empty("jobs", filter.state ? t("jobs.none-state", { state: t(`state.${filter.state}`) }) : t("jobs.none"), html`<code>zq submit TASK --queue NAME</code>`);
  }

  function foot(rows) {
    return html`<footer><span>${t("jobs.shown", { n: rows.length })}${scanned > rows.length ? ` · ${t("jobs.scanned", { n: scanned })}` : ""}</span>
      ${next ? html`<button class="button small" type="button" @click=${more}>${t("jobs.more")}</button>` : nothing}</footer>`;
  }

  function bar(filter) {
    return html`<div class="picked-bar" role="region" aria-label=${t("jobs.picked-label")}>
      <span>${everything ? t("jobs.picked-all") : t("jobs.picked", { n: picked.size })}</span>
      ${!everything && next ? html`<button type="button" class="button small" @click=${() => ((everything = true), update())}>${t("jobs.pick-matching")}</button>` : nothing}
      <span class="acts">${ACTIONS[filter.state].map((action) => html`<button type="button" class="button small" @click=${() => act(action)}>${icon(ICONS[action])}${t(`bulk.${action}`)}…</button>`)}</span>
      <button type="button" class="button small" @click=${() => (picked.clear(), (everything = false), update())}>${t("jobs.unpick")}</button></div>`;
  }

  function pick(id, on) {
    everything = false;
    if (on) picked.add(id);
    else picked.delete(id);
    update();
  }

  function table(rows, filter) {
    const all = rows.every((job) => picked.has(job.id));
    const pickAll = (event) => {
      everything = false;
      for (const job of rows) event.target.checked ? picked.add(job.id) : picked.delete(job.id);
      update();
    };
    const operates = mayOperate();
    return html`<div class="scroll"><table class="cards">
      <thead><tr>
        ${operates ? html`<th class="tight"><input type="checkbox" aria-label=${t("jobs.pick-all")} .checked=${current(all || everything)} @change=${pickAll}></th>` : nothing}
        <th>${t("job")}</th><th>${t("jobs.state")}</th><th>${t("queue")}</th><th class="r">${t("col.attempt")}</th><th>${t("col.time")}</th><th>${t("col.what")}</th></tr></thead>
      <tbody>${repeat(rows, (job) => job.id, (job) => html`<tr class=${picked.has(job.id) || everything ? "picked" : ""}>
        ${operates ? html`<td class="tight pick"><input type="checkbox" aria-label="${t("jobs.pick")} ${job.id}" .checked=${current(picked.has(job.id) || everything)} @change=${(event) => pick(job.id, event.target.checked)}></td>` : nothing}
        <td class="wide job"><a class="main" href="/jobs/${job.id}" title=${job.task}>${shortTask(job.task)}</a><span class="under">${jobLink(job.id)}${job.key ? html` ${job.key}` : nothing}</span></td>
        <td data-label=${filter.state ? nothing : t("jobs.state")}>${chip(job.state)}</td>
        <td data-label=${t("queue")}>${queueLink(job.queue)}</td>
        <td class="r ${job.attempt ? "" : "gone"}" data-label=${t("col.attempt")}>${job.attempt ? `${whole(job.attempt)}/${whole(job.attempts_max)}` : html`<span class="zero">–</span>`}</td>
        <td class="whole" data-label=${t("col.time")}>${times(job)}</td>
        <td class="wide what">${what(job)}</td>
      </tr>`)}</tbody></table></div>`;
  }
}

export function times(job) {
  if (job.state === "running") return html`<span class="num" title=${exact(job.started_at)}>${t("job.runs", { time: duration(since(job.started_at)) })}</span>`;
  if (job.state === "scheduled") return html`${t("job.due")} ${when(job.due_at)}`;
  if (job.state === "ready") return html`${t("job.waits")} <span class="num">${duration(since(job.accepted_at))}</span>`;
  const took = job.started_at && job.ended_at ? (new Date(job.ended_at) - new Date(job.started_at)) / 1000 : null;
  return html`${when(job.ended_at)}${took === null || took < 0 ? nothing : html`<span class="under num">${t("job.took", { time: duration(took) })}</span>`}`;
}

// Its arguments tell a job from its neighbours; above them stands what is worth more.
function what(job) {
  const first = job.error && job.state !== "done" ? html`<span class="error clip" title=${firstLine(job.error)}>${firstLine(job.error)}</span>` : job.state === "running" ? progressOf(job) : nothing;
  return html`${first}${job.arguments ? html`<span class="given" title=${job.arguments}>${job.arguments}</span>` : nothing}`;
}

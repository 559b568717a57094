// What views are made of.
import { bytes, exact, relative, shortId, whole } from "./format.js";
import { icon } from "./icons.js";
import { html, nothing } from "./lit.js";
import { state, toast, update } from "./store.js";
import { mayOperate, said } from "./api.js";
import { t } from "./words.js";

export const chip = (name) => html`<span class="chip ${name}">${t(`state.${name}`)}</span>`;
export const toned = (tone, text) => html`<span class="chip ${tone}">${text}</span>`;
export const count = (n) => (n ? html`<span class="num">${whole(n)}</span>` : html`<span class="zero num">0</span>`);
export const when = (text) =>
  text ? html`<time datetime=${text} title=${exact(text)}>${relative(text)}</time>` : html`<span class="dim">–</span>`;

let copied = "";

export function copy(text, label = t("copy.label")) {
  const put = async (event) => {
    event.preventDefault();
    event.stopPropagation();
    await put_on_clipboard(text);
    copied = text;
    update();
    setTimeout(() => ((copied = ""), update()), 1400);
  };
  const did = copied === text;
  return html`<button type="button" class="copy ${did ? "did" : ""}" title=${label} aria-label="${label}: ${text}" @click=${put}>${icon(did ? "check" : "copy")}</button>`;
}

async function put_on_clipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not over plain HTTP from another machine: the old way still works there.
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "hidden";
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast(t("copy.done"));
}

export const jobLink = (id) =>
  html`<span class="id"><a class="mono" href="/jobs/${id}" title=${id}>${shortId(id)}</a>${copy(id)}</span>`;
export const queueLink = (name) => html`<a class="q" title=${name} href="/queues/${encodeURIComponent(name)}">${name}</a>`;
// As a shell takes it.
export const workerCommand = (queue) => `zq worker --queue ${/^[\w.@%+=:,/-]+$/.test(queue) ? queue : `'${queue.replaceAll("'", `'"'"'`)}'`}`;

const width = (part) => `width:${Math.max(0, Math.min(100, 100 * part)).toFixed(1)}%`;

export const bar = (part, label, tone = "") =>
  html`<span class="track ${tone}" role="img" aria-label=${label}><i .style=${width(part)}></i></span>`;

export function stack(parts, label) {
  const sum = parts.reduce((total, [, n]) => total + n, 0) || 1;
  return html`<div class="stack" role="img" aria-label=${label}>
    ${parts.map(([tone, n]) => (n ? html`<i class="b-${tone}" .style=${width(n / sum)}></i>` : nothing))}
  </div>`;
}

export function fraction(job) {
  const p = job.progress;
  return p && p.total > 0 ? Math.min(1, p.done / p.total) : null;
}

export function progressOf(job) {
  const part = fraction(job);
  if (part === null) return job.progress?.message ? html`<span class="dim">${job.progress.message}</span>` : nothing;
  const percent = `${Math.floor(100 * part)} %`;
  return html`<span class="meter" title=${job.progress.message}>${bar(part, t("job.progress-label", { percent }))}<span class="num">${percent}</span></span>`;
}

export const empty = (name, title, text = nothing) =>
  html`<div class="empty">${icon(name)}<strong>${title}</strong>${text === nothing ? nothing : html`<p>${text}</p>`}</div>`;

export const bones = (rows = 4) =>
  html`<div class="bones" role="status"><span class="hidden">${t("loading")}</span>
    ${Array.from({ length: rows }, (_, i) => html`<span class="bone" .style=${`width:${92 - ((i * 37) % 45)}%`}></span>`)}</div>`;

export const trouble = (error) =>
  html`<div class="empty" role="alert">${icon("dead")}<strong>${t("error.title")}</strong><p>${said(error)}</p></div>`;

// A resource as it is: not there yet, in trouble, or drawn. What is there stays while it is asked for again.
export function shown(resource, draw, rows = 4) {
  if (resource.data !== null) return html`<div class=${resource.stale ? "paler" : ""}>${draw(resource.data)}</div>`;
  return resource.error ? trouble(resource.error) : bones(rows);
}

export const section = (title, body, { note = nothing, acts = nothing, foot = nothing } = {}) =>
  html`<section class="card"><header><h2>${title}</h2>${note === nothing ? nothing : html`<span class="dim">${note}</span>`}${acts}</header>${body}${foot === nothing ? nothing : html`<footer>${foot}</footer>`}</section>`;

export const heading = (title, { sub = nothing, acts = nothing, crumb = nothing } = {}) =>
  html`<div class="head"><div>${crumb === nothing ? nothing : html`<p class="crumb">${crumb}</p>`}<h1 tabindex="-1">${title}</h1>${sub === nothing ? nothing : html`<p class="sub">${sub}</p>`}</div><div class="acts">${acts}</div></div>`;

// Nothing that changes something is shown to a tab that may not: it says how to get there instead.
export const acting = (parts) => (mayOperate() && state.connection !== "locked" ? parts : nothing);

export async function run(work, done) {
  try {
    const found = await work();
    if (done) toast(typeof done === "function" ? done(found) : done);
    return found;
  } catch (error) {
    toast(said(error), "bad");
    return undefined;
  } finally {
    update();
  }
}

// More are a bar.
const SLOTS_DRAWN = 10;

export function slotsOf(queue) {
  if (!queue.slots) return html`<span class="zero">–</span>`;
  const busy = Math.max(0, queue.slots - queue.free);
  const label = t("slots.label", { busy, slots: queue.slots });
  if (queue.slots > SLOTS_DRAWN) return html`<span class="meter">${bar(busy / queue.slots, label)}<span class="num">${busy}/${queue.slots}</span></span>`;
  return html`<span class="meter" title=${label}><span class="slots" role="img" aria-label=${label}>${Array.from({ length: queue.slots }, (_, i) => html`<i class=${i < busy ? "busy" : ""}></i>`)}</span><span class="num">${busy}/${queue.slots}</span></span>`;
}

export const memory = (n) => (n ? html`<span class="num">${bytes(n)}</span>` : html`<span class="zero">–</span>`);

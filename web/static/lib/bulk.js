// Many jobs at once: first a dry run that counts them, then the question, then the deed, in as many calls as it takes.
import { post, said } from "./api.js";
import { confirm } from "./ask.js";
import { firstLine, shortId, shortTask, whole } from "./format.js";
import { html, nothing } from "./lit.js";
import { toast, update } from "./store.js";
import { t } from "./words.js";

const AT_ONCE = 10000;
const IDS_AT_ONCE = 1000;
export const DESTRUCTIVE = new Set(["cancel", "drop"]);

// What a filter in an address means to the API: null where it asks for nothing.
export function filterOf({ state, queue, task, error, where = [], group, ids }) {
  const filter = {};
  if (state) filter.state = state;
  if (queue) filter.queue = queue;
  if (task) filter.task = task;
  if (error) filter.error = error;
  if (group) filter.group = group;
  if (ids) filter.ids = ids;
  if (where.length) filter.where = Object.fromEntries(where.map(condition));
  if (!Object.keys(filter).some((name) => name !== "state")) filter.all = true;
  return filter;
}

function condition(text) {
  const at = text.indexOf("=");
  const value = text.slice(at + 1);
  try {
    return [text.slice(0, at), JSON.parse(value)];
  } catch {
    return [text.slice(0, at), value];
  }
}

// One filter, or several where it names more jobs than a call takes.
function parts(filter) {
  const ids = filter.ids ?? [];
  if (ids.length <= IDS_AT_ONCE) return [filter];
  return Array.from({ length: Math.ceil(ids.length / IDS_AT_ONCE) }, (_, i) => ({ ...filter, ids: ids.slice(i * IDS_AT_ONCE, (i + 1) * IDS_AT_ONCE) }));
}

function sum(dries) {
  const states = {};
  for (const dry of dries) for (const [name, n] of Object.entries(dry.states)) states[name] = (states[name] ?? 0) + n;
  return { matched: dries.reduce((n, dry) => n + dry.matched, 0), complete: dries.every((dry) => dry.complete), sample: dries[0].sample, states };
}

// action: cancel, retry or drop. Resolves to how many were changed; undefined if the answer was no.
export async function bulk(action, filter) {
  const path = `/v1/jobs:${action}`;
  let dry;
  try {
    dry = sum(await Promise.all(parts(filter).map((part) => post(path, { ...part, dry_run: true, limit: AT_ONCE }))));
  } catch (error) {
    toast(said(error), "bad");
    return undefined;
  }
  if (!dry.matched) {
    toast(t(`bulk.${action}-none`));
    return undefined;
  }
  const changed = await confirm({
    title: t(`bulk.${action}-title`),
    body: () => body(action, dry),
    label: t(`bulk.${action}-do`, { n: dry.matched }),
    tone: DESTRUCTIVE.has(action) ? "bad" : "",
    act: () => all(path, filter, dry.complete),
  });
  if (changed === undefined) return undefined;
  toast(t(`bulk.${action}-did`, { n: changed.n }));
  update();
  return changed.n;
}

async function all(path, filter, once) {
  let n = 0;
  for (const part of parts(filter)) {
    let found;
    do {
      found = await post(path, { ...part, limit: AT_ONCE });
      n += found.changed;
    } while (!once && !found.complete && found.changed);
  }
  return { n };
}

function body(action, dry) {
  const states = Object.entries(dry.states);
  const kinds = states.map(([name, n]) => (states.length > 1 ? `${whole(n)} ${t(`state.${name}`)}` : t(`state.${name}`))).join(" · ");
  return html`<div><p class="count">${whole(dry.matched)}${dry.complete ? "" : "+"}</p><p class="dim">${t("bulk.jobs")} · ${kinds}</p></div>
    <p>${t(`bulk.${action}-text`)}</p>
    <ul class="sample" aria-label=${t("bulk.sample")}>
      ${dry.sample.slice(0, 6).map((job) => html`<li><span class="mono">${shortId(job.id)}</span> ${shortTask(job.task)} <span class="dim">${job.key || job.queue}${job.error ? ` · ${firstLine(job.error).slice(0, 80)}` : ""}</span></li>`)}
      ${dry.matched > 6 ? html`<li class="dim">${t("bulk.others", { n: dry.matched - 6 })}</li>` : nothing}
    </ul>`;
}

// Exams: who is there, what has been uploaded, and what became of the recordings.
import { ask, enc, Resource } from "../lib/api.js";
import { bytes, clockLength, dayAndTime, firstLine, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, live as current, nothing, repeat } from "../lib/lit.js";
import { bones, empty, heading, shown, stack, toned, trouble, when } from "../lib/parts.js";
import { setQuery } from "../lib/router.js";
import { update } from "../lib/store.js";
import { t } from "../lib/words.js";

export const EXAM_TONE = { pending: "scheduled", active: "good", completed: "" };
export const MERGE_TONE = { requested: "scheduled", submitted: "running", done: "done", failed: "bad" };
const PRESENCE = [["online", "done"], ["offline", "dead"], ["logout", "running"], ["pending", "dim"]];
// What is going on comes first, then what is to come, latest first in each.
const ORDER = ["active", "pending", "completed"];
const LISTED = 50;
const COUNTED = 12;
const PAGE = 500;
const STUDENTS_MAX = 10000;
const DRAWN = 200;

// What is told of students changes with the status check and with merges, and both are jobs.
const sign = (live) => live.queues.filter((queue) => ["status_check", "video_merge"].includes(queue.name)).map((queue) => `${queue.done} ${queue.running} ${queue.dead}`).join(" ");

export function exams() {
  const found = new Resource(load, update, 3000);
  async function load(signal) {
    const page = await ask(`/v1/exams?limit=${LISTED}`, { signal });
    const first = page.exams.slice(0, COUNTED);
    const counts = await Promise.all(first.map((exam) => ask(`/v1/exams/${enc(exam.id)}?limit=1`, { signal })));
    const all = page.exams.map((exam, index) => ({ exam, counts: counts[index]?.counts ?? null }));
    return all.sort((a, b) => ORDER.indexOf(a.exam.status) - ORDER.indexOf(b.exam.status));
  }
  return {
    title: () => t("nav.exams"),
    picture: (live) => found.follow(sign(live)),
    close: () => found.close(),
    render: () => html`${heading(t("nav.exams"), { sub: t("exams.sub") })}
      ${shown(found, (all) => (all.length ? html`<div class="columns">${all.map(card)}</div>` : html`<section class="card">${empty("exams", t("exams.none"), t("exams.none-text"))}</section>`))}`,
  };
}

const span = (exam) => `${dayAndTime(exam.start)} – ${dayAndTime(exam.end)}`;

function card({ exam, counts }) {
  return html`<a class="card exam" href="/exams/${enc(exam.id)}"><span class="top"><h2>${exam.name}</h2>${toned(EXAM_TONE[exam.status], t(`exam.${exam.status}`))}</span>
    <span class="dim">${exam.id} · ${span(exam)}</span>${counts ? presence(counts) : nothing}</a>`;
}

function presence(counts) {
  const parts = PRESENCE.map(([name, tone]) => [tone, counts[name] ?? 0]);
  const said = PRESENCE.map(([name]) => `${whole(counts[name] ?? 0)} ${t(`presence.${name}`)}`).join(", ");
  return html`${stack(parts, said)}<span class="faces">${PRESENCE.map(([name]) => html`<span><i class="presence ${name}"></i><b>${whole(counts[name] ?? 0)}</b> ${t(`presence.${name}`)}</span>`)}</span>`;
}

const FILTERS = {
  "": () => true,
  online: (s) => s.status === "online",
  offline: (s) => s.status === "offline",
  logout: (s) => s.status === "logout",
  merging: (s) => ["requested", "submitted"].includes(s.recording?.state),
  done: (s) => s.recording?.state === "done",
  failed: (s) => s.recording?.state === "failed",
  without: (s) => s.status === "logout" && !s.recording,
};

export function exam({ params, query }) {
  let drawn = DRAWN;
  let large = false;
  const found = new Resource(load, update, 3000);

  async function load(signal) {
    const path = `/v1/exams/${enc(params.exam)}?limit=${PAGE}`;
    const first = await ask(path, { signal });
    const students = first.students;
    let { next } = first;
    large = next !== null;
    if (found.data === null && large) {
      // The first of many pages is worth seeing while the others come.
      found.data = { exam: first.exam, counts: first.counts, students };
      update();
    }
    while (next && students.length < STUDENTS_MAX) {
      const page = await ask(`${path}&after=${enc(next)}`, { signal });
      students.push(...page.students);
      next = page.next;
    }
    return { exam: first.exam, counts: first.counts, students };
  }

  return {
    title: () => found.data?.exam.name ?? t("exam"),
    // A large exam is many pages: it is not read again at every heartbeat of the check.
    picture: (live) => found.follow(large ? String(Math.floor(Date.now() / 20000)) : sign(live)),
    query: () => {
      drawn = DRAWN;
      update();
    },
    close: () => found.close(),
    render() {
      const crumb = html`<a href="/exams">${t("nav.exams")}</a>`;
      if (found.waiting) return html`${heading(t("exam"), { crumb })}<section class="card">${bones(8)}</section>`;
      if (!found.data) return html`${heading(t("exam"), { crumb })}<section class="card">${found.error.status === 404 ? empty("search", t("exam.unknown")) : trouble(found.error)}</section>`;
      const { exam: one, counts, students } = found.data;
      const wanted = query().get("show") ?? "";
      const text = (query().get("name") ?? "").toLowerCase();
      const fits = FILTERS[wanted] ?? FILTERS[""];
      const rows = students.filter((s) => fits(s) && (!text || s.id.toLowerCase().includes(text) || s.name.toLowerCase().includes(text)));
      const tab = (name) => html`<button type="button" aria-pressed=${wanted === name} @click=${() => setQuery({ show: name })}>${name ? t(`students.${name}`) : t("all")} <b>${whole(students.filter(FILTERS[name]).length)}</b></button>`;
      return html`${heading(html`${one.name} ${toned(EXAM_TONE[one.status], t(`exam.${one.status}`))}`, { crumb, sub: html`${one.id} · ${span(one)}` })}
        <section class="card"><div class="exam">${presence(counts)}${merges(students)}</div></section>
        <div class="filters"><div class="segments" role="group" aria-label=${t("students.show")}>${Object.keys(FILTERS).map(tab)}</div>
          <label class="search">${icon("search")}<span class="hidden">${t("students.search")}</span><input type="search" data-search autocomplete="off" placeholder=${t("students.search")} .value=${current(query().get("name") ?? "")} @input=${(event) => setQuery({ name: event.target.value })}></label></div>
        <section class="card">${rows.length ? table(one, rows.slice(0, drawn)) : empty("search", t("students.none"))}
          ${rows.length > drawn ? html`<footer><span>${t("students.shown", { n: drawn, of: whole(rows.length) })}</span><button type="button" class="button small" @click=${() => ((drawn += DRAWN), update())}>${t("jobs.more")}</button></footer>` : nothing}</section>`;
    },
  };
}

function merges(students) {
  const n = (name) => students.filter(FILTERS[name]).length;
  const size = students.reduce((sum, s) => sum + (s.recording?.video ? s.recording.size_bytes : 0), 0);
  return html`<span class="faces"><span>${icon("video")} <b>${whole(n("done"))}</b> ${t("students.done")}</span><span><b>${whole(n("merging"))}</b> ${t("students.merging")}</span><span><b>${whole(n("failed"))}</b> ${t("students.failed")}</span>${size ? html`<span><b>${bytes(size)}</b> ${t("students.size")}</span>` : nothing}</span>`;
}

function table(one, rows) {
  return html`<div class="scroll"><table class="cards">
    <thead><tr><th>${t("student")}</th><th>${t("students.presence")}</th><th>${t("students.heard")}</th><th class="r">${t("students.segments")}</th><th>${t("students.recording")}</th><th><span class="hidden">${t("col.acts")}</span></th></tr></thead>
    <tbody>${repeat(rows, (s) => s.id, (s) => {
      const href = `/exams/${enc(one.id)}/students/${enc(s.id)}`;
      return html`<tr><td><a class="main" href=${href}>${s.name || s.id}</a><span class="under">${s.id}</span></td>
        <td data-label=${t("students.presence")}><i class="presence ${s.status}"></i>${t(`presence.${s.status}`)}</td>
        <td class=${s.last_active_at ? "" : "gone"} data-label=${t("students.heard")}>${when(s.last_active_at)}</td>
        <td class="r ${s.segments === 0 ? "gone" : ""}" data-label=${t("students.segments")}>${s.segments ?? "?"}</td>
        <td class="wide ${s.recording ? "" : "gone"}">${recordingState(s.recording)}</td>
        <td class="tight wide ${s.recording?.video ? "" : "gone"}">${s.recording?.video ? html`<a class="button small" href=${href} aria-label="${t("student.play")}: ${s.name || s.id}">${icon("play")}${t("student.play")}</a>` : nothing}</td></tr>`;
    })}</tbody></table></div>`;
}

export function recordingState(recording) {
  if (!recording) return html`<span class="zero">–</span>`;
  const told = recording.video ? html` <span class="dim num">${clockLength(recording.duration_s)} · ${bytes(recording.size_bytes)}</span>` : nothing;
  const error = recording.error ? html`<span class="error clip">${firstLine(recording.error)}</span>` : nothing;
  return html`<a href="/jobs/${recording.job_id}">${toned(MERGE_TONE[recording.state], t(`merge.${recording.state}`))}</a>${told}${error}`;
}

// Reads the same API as everybody else: at once when a job has taken a step, and every ten seconds anyway.
import {
  badge, bar, button, byId, clock, element, firstLine, jobLink, megabytes, moment, number, put, row, seconds, shortName,
  since, spark, table,
} from "/static/widgets.js";

const IDLE_MS = 10000;
const AT_MOST_EVERY_MS = 1000;
const EXAMS_EVERY_MS = 3000;
const EXAMS_SHOWN = 5;
const HISTORY = 120;

// The link with the token brings a key for this tab alone, behind the #, which is never sent to any server.
const given = location.hash.match(/^#operate=([0-9a-f]{64})$/);
if (given) {
  sessionStorage.setItem("operate", given[1]);
  history.replaceState(null, "", "/");
}
const operate = sessionStorage.getItem("operate");

async function ask(path, method = "GET", body = undefined) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers.Authorization = `Bearer ${operate}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok && !(answer.status === 503 && found.reasons)) throw new Error(found.detail || found.title);
  return found;
}

const encoded = encodeURIComponent;

function queueState(queue) {
  if (queue.paused) return badge("paused");
  return queue.ready && !queue.consumers ? badge("no worker") : element("span");
}

function slots(queue) {
  if (!queue.slots) return "";
  const busy = queue.slots - queue.free;
  return row(bar(busy, queue.slots, `${busy} of ${queue.slots} slots are busy`), `${busy}/${queue.slots}`);
}

function pauseButton(queue) {
  const action = queue.paused ? "resume" : "pause";
  return button(queue.paused ? "Resume" : "Pause", action, { queue: queue.name }, `${action} queue ${queue.name}`);
}

function limitsOf(queue) {
  const found = [];
  if (queue.rate_per_s) found.push(`${queue.rate_per_s}/s`);
  if (queue.running_max) found.push(`${queue.running_max} at once`);
  if (queue.length_max) found.push(`${queue.length_max} waiting`);
  return found.join(", ");
}

function progress(job) {
  if (!job.progress) return "";
  const { done, total, message } = job.progress;
  const percent = Math.round((100 * done) / total);
  return total > 0 ? row(bar(done, total, `${percent} %`), `${percent} %`, message) : message;
}

const QUEUES = [
  ["Queue", (q) => row(element("b", q.name), queueState(q))],
  number("Ready", "ready"), number("Running", "running"), number("Scheduled", "scheduled"), number("Done", "done"),
  number("Dead", "dead"), ["Slots", slots], ["Oldest waits", (q) => (q.ready ? seconds(q.oldest_ready_s) : ""), "number"],
  ["Limits", limitsOf],
];
const JOBS = [
  ["Job", (j) => jobLink(j.id)], ["Task", (j) => shortName(j.task)], ["Queue", (j) => j.queue], ["State", (j) => badge(j.state)],
  ["Key", (j) => j.key, "text"], ["Attempt", (j) => (j.attempt ? `${j.attempt}/${j.attempts_max}` : "")],
  ["Since", (j) => since(j.ended_at || j.started_at || j.accepted_at), "number"], ["Progress", progress],
  ["CPU", (j) => (j.usage.cpu_s ? seconds(j.usage.cpu_s) : ""), "number"], ["Peak memory", (j) => megabytes(j.usage.peak_rss_bytes), "number"],
];
const DEAD = [
  ["Error", (g) => g.error || "no reason was given", "text"], ["Task", (g) => shortName(g.task)], ["Queue", (g) => g.queue],
  ["Jobs", (g) => g.jobs.length.toLocaleString(), "number"], ["Latest", (g) => row(jobLink(g.jobs[0].id), moment(g.jobs[0].ended_at))],
];
const WORKERS = [
  ["Worker", (w) => element("b", w.name)], ["Queues", (w) => w.queues.map((q) => `${q.queue} × ${q.slots}`).join(", ")],
  number("Running", "running"), ["Tags", (w) => w.tags.join(", ")], ["Last heard", (w) => seconds(w.silent_s), "number"],
  ["Up", (w) => seconds(w.connected_s), "number"], ["Version", (w) => w.software],
];
const SCHEDULES = [
  ["Schedule", (s) => element("b", s.name)], ["Task", (s) => shortName(s.task)], ["Queue", (s) => s.queue], ["When", (s) => (s.paused ? row(s.rule, badge("paused")) : s.rule)],
  ["Next", (s) => clock(s.next_at)], ["Last", (s) => (s.last ? row(clock(s.last.nominal_at), badge(s.last.state)) : "not yet")],
  ["Late", (s) => (s.last ? seconds(s.last.late_s) : ""), "number"], ["Missed", (s) => s.missed, "number"],
];
const STUDENTS = [
  ["Student", (s) => s.id], ["Name", (s) => s.name], ["Presence", (s) => badge(s.status)], ["Last heard", (s) => clock(s.last_active_at)],
  ["Segments", (s) => (s.segments ?? "?").toString(), "number"], ["Recording", recording, "text"],
];

function recording(student) {
  const found = student.recording;
  if (!found) return "";
  const parts = [badge(found.state)];
  if (found.video) {
    const name = `${student.id} ${student.name}`;
    parts.push(`${seconds(found.duration_s)}, ${megabytes(found.size_bytes)}`, button("Play", "play", { video: found.video, name }, `Play the recording of ${name}`));
  }
  if (found.error) parts.push(firstLine(found.error));
  return row(...parts);
}

const past = { ready: [], running: [], done: [], dead: [] };
let before = null;

function tiles(queues, workers) {
  const total = (key) => queues.reduce((sum, queue) => sum + queue[key], 0);
  const now = { at: performance.now(), done: total("done") };
  const rate = before ? Math.max(0, (60000 * (now.done - before.done)) / (now.at - before.at)) : 0;
  if (!before || now.at - before.at > 900) {
    for (const [key, value] of [["ready", total("ready")], ["running", total("running")], ["done", rate], ["dead", total("dead")]]) {
      past[key].push(value);
      past[key].splice(0, past[key].length - HISTORY);
    }
    before = now;
  }
  const free = total("free");
  const tile = (name, value, note, key) => {
    const made = element("div", null, "tile");
    made.append(element("span", name, "name"), element("strong", value), element("span", note, "note"));
    if (key && past[key].length > 1) made.append(spark(past[key]));
    return made;
  };
  return [
    tile("Waiting", total("ready").toLocaleString(), `${total("scheduled").toLocaleString()} scheduled`, "ready"),
    tile("Running", total("running").toLocaleString(), `${free} of ${total("slots")} slots free`, "running"),
    tile("Done", total("done").toLocaleString(), `${Math.round(past.done.at(-1) ?? 0).toLocaleString()} a minute`, "done"),
    tile("Dead letters", total("dead").toLocaleString(), total("dead") ? "see below" : "none", "dead"),
    tile("Workers", workers.length.toLocaleString(), `${queues.length} queues`),
  ];
}

let groups = new Map();

// Errors that differ in numbers only are one: 500 equal failures are a row, not a page.
function deadGroups(jobs) {
  groups = new Map();
  for (const job of jobs) {
    const key = JSON.stringify([job.task, job.queue, firstLine(job.error).replace(/\d+/g, "…")]);
    if (!groups.has(key)) groups.set(key, { key, task: job.task, queue: job.queue, error: firstLine(job.error), jobs: [] });
    groups.get(key).jobs.push(job);
  }
  return [...groups.values()].sort((a, b) => b.jobs.length - a.jobs.length);
}

const acting = (title, make) => (operate ? [[title, make, "acts"]] : []);
const retryButton = (g) => button("Retry", "retry", { key: g.key }, `Retry ${g.jobs.length} jobs: ${g.error}`);

async function broker() {
  const state = byId("job-state").value;
  const where = byId("job-where").value.trim();
  const jobs = `/v1/jobs?limit=50&state=${state}${where ? `&where=${encoded(where)}` : ""}`;
  const [ready, queues, found, dead, workers, schedules] = await Promise.all(
    ["/readyz", "/v1/queues", jobs, "/v1/dead?limit=500", "/v1/workers", "/v1/schedules"].map((path) => ask(path)));
  put("alarms", ready.reasons.map((reason) => element("li", reason)));
  put("tiles", tiles(queues.queues, workers.workers));
  put("queue-rows", table([...QUEUES, ...acting("", pauseButton)], queues.queues, "No queue has had a job yet."));
  put("job-rows", table(JOBS, found.jobs, where ? `No such job among the ${found.scanned} that were looked at.` : `No job is ${state || "there"}.`));
  const letters = [table([...DEAD, ...acting("", retryButton)], deadGroups(dead.jobs), "No dead letters.")];
  if (dead.next) letters.push(element("p", `Only ${dead.jobs.length} are shown; GET /v1/dead has all of them.`, "note"));
  put("dead-rows", letters);
  put("worker-rows", table(WORKERS, workers.workers, "Nobody is connected."));
  put("schedule-rows", table(SCHEDULES, schedules.schedules, "Nothing is scheduled."));
}

let examsAt = -EXAMS_EVERY_MS;

async function exams() {
  if (performance.now() - examsAt < EXAMS_EVERY_MS) return;
  examsAt = performance.now();
  const found = (await ask(`/v1/exams?limit=${EXAMS_SHOWN}`)).exams;
  const details = await Promise.all(found.map((exam) => ask(`/v1/exams/${encoded(exam.id)}?limit=500`)));
  const shown = details.map(({ exam, counts, students }) => {
    const card = element("div", null, "card");
    const title = element("h3");
    title.append(row(exam.name, badge(exam.status)));
    const told = Object.entries(counts).filter(([, n]) => n).map(([status, n]) => `${n} ${status}`).join(" · ");
    card.append(title, element("p", `${exam.id} · ${moment(exam.start)} – ${moment(exam.end)} · ${told}`, "note"));
    card.append(table(STUDENTS, students, "No students on the list."));
    return card;
  });
  put("exam-rows", shown.length ? shown : element("p", "No exams yet.", "none"));
}

function facts(found) {
  const { job } = found;
  const lines = [
    ["Queue", job.queue], ["Key", job.key], ["Priority", job.priority], ["Arguments", JSON.stringify(found.args) + " " + JSON.stringify(found.kwargs)],
    ["Due", moment(job.due_at)], ["Worker", job.worker], ["Tags", job.tags.join(", ")], ["Concurrency key", job.concurrency_key],
    ["Time limit", `${seconds(found.soft_time_limit_s)} soft, ${seconds(found.time_limit_s)} hard`],
    ["Result", job.state === "done" ? JSON.stringify(found.result) : ""],
  ];
  const made = element("dl");
  for (const [name, value] of lines) if (value !== "") made.append(element("dt", name), element("dd", String(value)));
  return made;
}

const ATTEMPTS = [
  ["Attempt", (a) => String(a.number)], ["Outcome", (a) => badge(a.outcome ?? "running")], ["Worker", (a) => a.worker], ["Began", (a) => clock(a.started_at)],
  ["Ended", (a) => clock(a.ended_at)], ["CPU", (a) => seconds(a.usage.cpu_s), "number"], ["Peak memory", (a) => megabytes(a.usage.peak_rss_bytes), "number"],
];
const STEPS = [
  ["When", (e) => moment(e.at)], ["Step", (e) => e.cause.replaceAll("_", " ")], ["Then", (e) => badge(e.state)], ["Worker", (e) => e.worker], ["", (e) => firstLine(e.detail), "text"],
];

async function showJob(id) {
  const found = await ask(`/v1/jobs/${id}`);
  const title = element("h2");
  title.append(row(found.job.task, badge(found.job.state)));
  const parts = [title, element("p", found.job.id, "note")];
  if (found.why) parts.push(element("p", `It waits: ${found.why.text}`, "why"));
  parts.push(facts(found), table(STEPS, found.history, "Its steps have been forgotten."));
  if (found.attempts.length) parts.push(table(ATTEMPTS, found.attempts, ""));
  if (found.job.error) parts.push(element("pre", found.job.error));
  byId("detail-body").replaceChildren(...parts);
  if (!byId("detail").open) byId("detail").showModal();
}

async function retry({ key }) {
  const { task, error, jobs } = groups.get(key);
  const wanted = { ids: jobs.map((job) => job.id) };
  const dry = await ask("/v1/dead:retry", "POST", { ...wanted, dry_run: true });
  if (confirm(`Run ${dry.matched} dead jobs of ${task} again?\n\n${error}`)) await ask("/v1/dead:retry", "POST", wanted);
}

const ACTIONS = {
  job: ({ id }) => showJob(id),
  pause: ({ queue }) => ask(`/v1/queues/${encoded(queue)}:pause`, "POST"),
  resume: ({ queue }) => ask(`/v1/queues/${encoded(queue)}:resume`, "POST"),
  retry,
  play: ({ video, name }) => {
    byId("playing").textContent = name;
    byId("video").src = video;
    byId("player").hidden = false;
    byId("player").scrollIntoView({ behavior: "smooth" });
    byId("video").focus();
  },
};

document.addEventListener("click", async (event) => {
  const pressed = event.target.closest("button[data-action]");
  if (!pressed) return;
  pressed.disabled = true;
  try {
    await ACTIONS[pressed.dataset.action](pressed.dataset);
  } catch (error) {
    alert(error.message);
  }
  pressed.disabled = false;
  soon();
});
byId("detail-close").addEventListener("click", () => byId("detail").close());
byId("job-state").addEventListener("change", () => refresh());
byId("job-where").addEventListener("change", () => refresh());

let timer = 0;
let lastAt = 0;
let busy = false;

async function refresh() {
  clearTimeout(timer);
  timer = setTimeout(refresh, IDLE_MS);
  if (document.hidden) return;
  if (busy) return soon();
  busy = true;
  lastAt = performance.now();
  const said = await Promise.allSettled([broker(), exams()]);
  busy = false;
  const failed = said.filter((one) => one.status === "rejected").map((one) => one.reason.message);
  if (failed.length) put("alarms", failed.map((text) => element("li", text)));
  byId("state").className = failed.length ? "bad" : live ? "live" : "";
  byId("state").textContent = failed.length ? "not all is well" : `${live ? "live" : "every 10 s"} · ${new Date().toLocaleTimeString()}`;
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(0, AT_MOST_EVERY_MS - (performance.now() - lastAt)));
}

let stream = null;
let live = false;

function listen() {
  stream?.close();
  stream = null;
  if (document.hidden) return;
  stream = new EventSource("/v1/events");
  let waiting = false;
  const changed = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => ((waiting = false), refresh()), AT_MOST_EVERY_MS);
  };
  stream.onmessage = changed;
  stream.addEventListener("gap", changed);
  stream.onopen = () => ((live = true), soon());
  stream.onerror = () => {
    live = false;
    // Refused for good, as when the broker is away: a browser does not come again by itself.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, IDLE_MS);
  };
}

document.addEventListener("visibilitychange", () => (listen(), refresh()));
window.addEventListener("pagehide", () => stream?.close());
window.addEventListener("pageshow", (event) => event.persisted && listen());
listen();
refresh();

// Reads the same API as everybody else, every two seconds while the page is seen. Text goes in as text, never as HTML.
const EVERY_MS = 2000;
const EXAMS_SHOWN = 5;
const byId = (id) => document.getElementById(id);

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok && answer.status !== 503) throw new Error(body.detail || body.title);
  if (answer.status === 503 && !body.reasons) throw new Error(body.detail);
  return body;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// columns: [title, row => text or Node, class]
function table(columns, rows, none) {
  if (!rows.length) return element("p", none, "none");
  const made = element("table");
  const head = made.createTHead().insertRow();
  for (const [title, , kind] of columns) {
    const cell = element("th", title, kind);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [, read, kind] of columns) {
      const value = read(row);
      const cell = element("td", value instanceof Node ? null : value, kind);
      if (value instanceof Node) cell.append(value);
      line.append(cell);
    }
  }
  return made;
}

const number = (name, key) => [name, (row) => row[key].toLocaleString(), "number"];
const clock = (text) => (text ? new Date(text).toLocaleTimeString() : "");
const seconds = (s) => (s < 120 ? `${s.toFixed(s < 10 ? 1 : 0)} s` : `${Math.round(s / 60)} min`);
const megabytes = (bytes) => `${(bytes / 1048576).toFixed(1)} MiB`;
const shortId = (id) => element("code", id.slice(0, 8) + "…" + id.slice(-4));

function progress(job) {
  const shown = element("span");
  if (job.progress) {
    const bar = element("progress");
    if (job.progress.total > 0) {
      bar.max = job.progress.total;
      bar.value = job.progress.done;
      bar.setAttribute("aria-label", `${Math.round((100 * job.progress.done) / job.progress.total)} %`);
    }
    shown.append(bar, " " + job.progress.message);
  }
  return shown;
}

const QUEUES = [
  ["Queue", (q) => q.name],
  number("Ready", "ready"), number("Running", "running"), number("Scheduled", "scheduled"), number("Done", "done"),
  number("Dead", "dead"), number("Workers", "consumers"),
  ["Slots free", (q) => `${q.free}/${q.slots}`, "number"],
  ["Oldest waits", (q) => (q.ready ? seconds(q.oldest_ready_s) : ""), "number"],
];
const JOBS = [
  ["Job", (j) => shortId(j.id)], ["Task", (j) => j.task], ["Key", (j) => j.key], ["Attempt", (j) => `${j.attempt}/${j.attempts_max}`],
  ["Since", (j) => clock(j.started_at)], ["Worker", (j) => j.worker], ["Progress", progress],
  ["CPU", (j) => seconds(j.usage.cpu_s), "number"], ["Peak memory", (j) => megabytes(j.usage.peak_rss_bytes), "number"],
];
const DEAD = [
  ["Job", (j) => shortId(j.id)], ["Task", (j) => j.task], ["Key", (j) => j.key], ["Ended", (j) => clock(j.ended_at)],
  ["Error", (j) => j.error.trim().split("\n").pop(), "text"],
];
const WORKERS = [
  ["Worker", (w) => w.name], ["Role", (w) => w.role], ["Queues", (w) => w.queues.map((q) => `${q.queue} × ${q.slots}`).join(", ")],
  number("Running", "running"), ["Last heard", (w) => seconds(w.silent_s), "number"], ["Version", (w) => w.software],
];
const TONE = { online: "good", active: "good", done: "good", offline: "bad", failed: "bad" };
const STUDENTS = [
  ["Student", (s) => s.id], ["Name", (s) => s.name], ["Presence", (s) => element("span", s.status, TONE[s.status])],
  ["Last heard", (s) => clock(s.last_active_at)], ["Segments", (s) => s.segments ?? "?", "number"], ["Recording", recording, "text"],
];

function recording(student) {
  const found = student.recording;
  const shown = element("span");
  if (!found) return shown;
  shown.append(element("span", found.state, TONE[found.state]));
  if (found.video) {
    const play = element("button", "Play");
    play.setAttribute("aria-label", `Play the recording of ${student.name || student.id}`);
    play.onclick = () => show(student);
    shown.append(` ${seconds(found.duration_s)}, ${megabytes(found.size_bytes)} `, play);
  }
  if (found.error) shown.append(" " + found.error.trim().split("\n").pop());
  return shown;
}

function show(student) {
  byId("playing").textContent = `${student.id} ${student.name}`;
  byId("video").src = student.recording.video;
  byId("player").hidden = false;
  byId("player").scrollIntoView({ behavior: "smooth" });
  byId("video").focus();
}

// Replaces only what has changed, so that focus, selection and screen readers are left in peace.
function put(id, fresh) {
  const place = byId(id);
  const wrapped = element("div");
  wrapped.append(...[fresh].flat());
  if (place.innerHTML !== wrapped.innerHTML) place.replaceChildren(...wrapped.childNodes);
}

async function broker() {
  const [ready, queues, running, dead, workers] = await Promise.all(
    ["/readyz", "/v1/queues", "/v1/jobs?state=running", "/v1/jobs?state=dead&limit=20", "/v1/workers"].map(ask));
  put("alarms", ready.reasons.map((reason) => element("li", reason)));
  put("queues", table(QUEUES, queues.queues, "No queue has had a job yet."));
  put("jobs", table(JOBS, running.jobs, "No job is running."));
  put("dead", table(DEAD, dead.jobs, "No dead letters."));
  put("workers", table(WORKERS, workers.workers, "Nobody is connected."));
}

async function exams() {
  const found = (await ask(`/v1/exams?limit=${EXAMS_SHOWN}`)).exams;
  const details = await Promise.all(found.map((exam) => ask(`/v1/exams/${encodeURIComponent(exam.id)}?limit=500`)));
  const shown = details.flatMap(({ exam, students }) => {
    const title = element("h3", `${exam.name} (${exam.id}) · ${exam.start} to ${exam.end} · `);
    title.append(element("span", exam.status, TONE[exam.status]));
    const scroll = element("div", null, "scroll");
    scroll.append(table(STUDENTS, students, "No students on the list."));
    return [title, scroll];
  });
  put("exams", shown.length ? shown : element("p", "No exams yet.", "none"));
}

async function refresh() {
  if (!document.hidden) {
    const said = await Promise.allSettled([broker(), exams()]);
    const failed = said.filter((one) => one.status === "rejected").map((one) => one.reason.message);
    if (said[0].status === "rejected") put("alarms", failed.map((text) => element("li", text)));
    byId("state").textContent = failed.length ? "not all is well" : `as of ${new Date().toLocaleTimeString()}`;
  }
  setTimeout(refresh, EVERY_MS);
}

refresh();

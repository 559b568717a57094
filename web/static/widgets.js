// What the page is made of: elements, tables, numbers as people read them. Text goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text instanceof Node) made.append(text);
  else if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function row(...parts) {
  const made = element("span");
  made.append(...parts.flatMap((part) => [part, " "]).slice(0, -1));
  return made;
}

// columns: [title, row => text or Node, class]. The roles stay when narrow screens show rows as cards.
export function table(columns, rows, none) {
  if (!rows.length) return element("p", none, "none");
  const made = element("table");
  made.setAttribute("role", "table");
  const head = made.createTHead().insertRow();
  for (const [title, , kind] of columns) {
    const cell = element("th", title, kind);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const one of rows) {
    const line = body.insertRow();
    line.setAttribute("role", "row");
    for (const [title, read, kind] of columns) {
      const cell = element("td", read(one), kind);
      cell.setAttribute("role", "cell");
      cell.dataset.label = title;
      if (!cell.hasChildNodes()) cell.classList.add("empty");
      line.append(cell);
    }
  }
  return made;
}

// Replaces only what has changed, so that focus, selection and screen readers are left in peace.
export function put(id, fresh) {
  const place = byId(id);
  const wrapped = element("div");
  wrapped.append(...[fresh].flat());
  if (place.innerHTML !== wrapped.innerHTML) place.replaceChildren(...wrapped.childNodes);
}

// Handlers do not survive `put`, so a click is heard by the document, and a button says what it does in data-action.
export function button(text, action, data, label) {
  const made = element("button", text);
  made.type = "button";
  made.dataset.action = action;
  Object.assign(made.dataset, data);
  if (label) made.setAttribute("aria-label", label);
  return made;
}

export function spark(values) {
  const made = byId("spark").content.firstElementChild.cloneNode(true);
  const most = Math.max(...values, 1);
  const step = 100 / Math.max(values.length - 1, 1);
  made.firstElementChild.setAttribute("points", values.map((v, i) => `${(i * step).toFixed(1)},${(23 - (22 * v) / most).toFixed(1)}`).join(" "));
  return made;
}

export function bar(done, total, label) {
  const made = element("progress");
  made.max = total;
  made.value = Math.min(done, total);
  made.setAttribute("aria-label", label);
  return made;
}

const TONE = {
  online: "good", active: "good", done: "good", running: "good", "no worker": "bad", offline: "bad", failed: "bad",
  dead: "bad", paused: "warn", expired: "warn", cancelled: "warn",
};
export const badge = (text) => element("span", text, `badge ${TONE[text] ?? ""}`);
export const count = (key) => (one) => (one[key] ? one[key].toLocaleString() : element("span", "0", "zero"));
export const number = (title, key) => [title, count(key), "number"];
export const clock = (text) => (text ? new Date(text).toLocaleTimeString() : "");
export const moment = (text) => (text ? new Date(text).toLocaleString() : "");
export const megabytes = (bytes) => (bytes ? `${(bytes / 1048576).toFixed(bytes < 10485760 ? 1 : 0)} MiB` : "");
export const firstLine = (text) => text.trim().split("\n")[0];
export const shortName = (name) => name.split(".").pop();

export function seconds(s) {
  if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}
export const since = (text) => (text ? seconds(Math.max(0, (Date.now() - new Date(text)) / 1000)) : "");

export function jobLink(id) {
  const made = button(id.slice(0, 8) + "…" + id.slice(-4), "job", { id }, `Job ${id}`);
  made.className = "link";
  return made;
}

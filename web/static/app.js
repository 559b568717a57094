// The frame: where one is, what else there is, whether what is shown is true; and the view inside.
import { enc, mayOperate, takeKey } from "./lib/api.js";
import { askDialog } from "./lib/ask.js";
import { icon } from "./lib/icons.js";
import { html, nothing, render } from "./lib/lit.js";
import { watchConnection } from "./lib/live.js";
import { find, go, listen, route } from "./lib/router.js";
import { drawWith, onPicture, state, totals, update } from "./lib/store.js";
import { clock, short } from "./lib/format.js";
import { empty, heading } from "./lib/parts.js";
import { language, LANGUAGES, setLanguage, setTheme, t, theme } from "./lib/words.js";
import { dead } from "./views/dead.js";
import { exam, exams } from "./views/exams.js";
import { job } from "./views/job.js";
import { jobs } from "./views/jobs.js";
import { overview } from "./views/overview.js";
import { queue, queues } from "./views/queues.js";
import { schedules } from "./views/schedules.js";
import { student } from "./views/student.js";
import { workers } from "./views/workers.js";

const NAV = [["overview", "/", "o"], ["queues", "/queues", "q"], ["jobs", "/jobs", "j"], ["dead", "/dead", "d"], ["exams", "/exams", "e"], ["schedules", "/schedules", "s"], ["workers", "/workers", "w"]];
const TABS = ["overview", "jobs", "dead", "exams"];

route("/", overview);
route("/queues", queues);
route("/queues/{queue}", queue);
route("/jobs", jobs);
route("/jobs/{id}", job);
route("/dead", dead);
route("/schedules", schedules);
route("/workers", workers);
route("/exams", exams);
route("/exams/{exam}", exam);
route("/exams/{exam}/students/{student}", student);

const lost = () => ({ title: () => t("lost.title"), render: () => html`${heading(t("lost.title"))}<section class="card">${empty("search", t("lost.text"), html`<a href="/">${t("nav.overview")}</a>`)}</section>` });

let view = null;
let viewKey = "";
let lastQuery = "";

function enter({ scroll = true, first = false } = {}) {
  const found = find(location.pathname);
  const key = found ? `${found.pattern} ${JSON.stringify(found.params)}` : "";
  if (key !== viewKey || !view) {
    view?.close?.();
    viewKey = key;
    view = (found?.make ?? lost)({ params: found?.params ?? {}, query: () => new URLSearchParams(location.search) });
    if (state.live) view.picture?.(state.live);
    draw();
    if (scroll) window.scrollTo(0, 0);
    // A screen reader is told where it is now, and the next Tab goes on from there.
    if (!first) document.querySelector("main h1")?.focus({ preventScroll: true });
  } else if (location.search !== lastQuery) {
    view.query?.();
    if (state.live) view.picture?.(state.live);
  }
  lastQuery = location.search;
  update();
}

function tally(name) {
  if (!state.live) return nothing;
  const sum = totals(state.live.queues);
  if (name === "dead" && sum.dead) return html`<span class="tally bad">${short(sum.dead)}</span>`;
  if (name === "jobs" && sum.running) return html`<span class="tally" title=${t("state.running")}>${short(sum.running)}</span>`;
  if (name === "workers") return html`<span class="tally">${short(state.live.workers.length)}</span>`;
  return nothing;
}

const here = (path) => (path === "/" ? location.pathname === "/" : location.pathname === path || location.pathname.startsWith(`${path}/`));

function pulse() {
  const lost = state.connection !== "live";
  const kind = state.old || (lost && state.heardAt) ? "lost" : lost ? "" : "live";
  const text = lost ? (state.heardAt ? t("pulse.lost") : t("pulse.connecting")) : state.old ? t("pulse.broker") : t("pulse.live");
  return html`<p class="pulse ${kind}" role="status"><i></i><span>${text}</span></p>`;
}

function choose(name) {
  setLanguage(name);
  update();
}

function switches() {
  return html`<div class="switches">
    <div class="segments" role="group" aria-label=${t("language")}>${Object.keys(LANGUAGES).map((name) => html`<button type="button" lang=${name === "zh" ? "zh-CN" : "en"} aria-pressed=${language === name} @click=${() => choose(name)}>${name === "zh" ? "中文" : "EN"}</button>`)}</div>
    <div class="segments" role="group" aria-label=${t("theme")}>${["auto", "light", "dark"].map((name) => html`<button type="button" aria-pressed=${theme() === name} @click=${() => (setTheme(name), update())}>${t(`theme.${name}`)}</button>`)}</div></div>`;
}

function mode() {
  if (mayOperate()) return nothing;
  return html`<p class="mode">${t("mode.read")} <a href="/login?next=${enc(location.pathname + location.search)}">${t("mode.unlock")}</a></p>`;
}

const link = ([name, path]) => html`<a href=${path} aria-current=${here(path) ? "page" : nothing}>${icon(name)}<span>${t(`nav.${name}`)}</span>${tally(name)}</a>`;

function tabs() {
  const dead = state.live ? totals(state.live.queues).dead : 0;
  const tab = ([name, path]) => html`<a href=${path} aria-current=${here(path) ? "page" : nothing}>${icon(name)}<span>${t(`tab.${name}`)}</span>${name === "dead" && dead ? html`<span class="dot">${short(dead)}</span>` : nothing}</a>`;
  const rest = NAV.filter(([name]) => !TABS.includes(name));
  return html`<nav class="tabs" aria-label=${t("nav.label")}>${NAV.filter(([name]) => TABS.includes(name)).map(tab)}
      <button type="button" popovertarget="more" aria-current=${rest.some(([, path]) => here(path)) ? "page" : nothing}>${icon("more")}<span>${t("tab.more")}</span></button></nav>
    <div class="more" id="more" popover @click=${(event) => event.target.closest("a") && document.getElementById("more").hidePopover()}><ul>${rest.map((one) => html`<li>${link(one)}</li>`)}</ul>${mode()}${switches()}</div>`;
}

function notice() {
  if (state.connection === "locked") return html`<div class="notice" role="alert">${icon("lock")}<span>${t("notice.locked")}</span><a href="/login?next=${enc(location.pathname + location.search)}">${t("mode.unlock")}</a></div>`;
  if (state.connection === "lost" && state.heardAt) return html`<div class="notice" role="alert">${icon("dead")}<span>${t("notice.lost", { time: clock(state.heardAt, true) })}</span></div>`;
  return nothing;
}

const keysOn = () => localStorage.getItem("zq-keys") !== "off";

function keysDialog() {
  const row = (keys, text) => html`<div><dt>${keys.map((key) => html`<kbd class="tag">${key}</kbd> `)}</dt><dd>${text}</dd></div>`;
  const toggle = (event) => (localStorage.setItem("zq-keys", event.target.checked ? "on" : "off"), update());
  return html`<dialog class="ask" id="keys" aria-labelledby="keys-title"><div class="inner"><h2 id="keys-title">${t("keys.title")}</h2>
    <dl class="facts">${NAV.map(([name, , key]) => row(["g", key], t(`nav.${name}`)))}${row(["/"], t("keys.search"))}${row(["?"], t("keys.help"))}</dl>
    <label><input type="checkbox" .checked=${keysOn()} @change=${toggle}> ${t("keys.on")}</label>
    <form method="dialog" class="acts"><button class="button">${t("close")}</button></form></div></dialog>`;
}

function draw() {
  const title = view.title();
  document.title = `${title} · zq`;
  render(html`<a class="skip" href="#content" @click=${(event) => (event.preventDefault(), document.querySelector("main h1")?.focus())}>${t("skip")}</a>
    <div class="shell ${state.old || (state.connection !== "live" && state.heardAt) ? "stale" : ""}">
      <header class="side"><a class="brand" href="/" aria-label="zq"><img src="/static/icon.svg" alt="">zq</a>
        <nav aria-label=${t("nav.label")}><ul>${NAV.map((one) => html`<li>${link(one)}</li>`)}</ul></nav>
        <div class="foot">${mode()}${switches()}${pulse()}<p class="version">${state.live?.broker?.software ?? ""} · <a href="/docs" target="_blank">API</a> · <button type="button" class="button small plain" @click=${() => document.getElementById("keys").showModal()}>${t("keys.button")}</button></p></div></header>
      <main id="content">${notice()}<div class="frame">${view.render()}</div></main>
    </div>${tabs()}${askDialog()}${keysDialog()}
    <div class="toasts" role="status" aria-live="polite">${state.toasts.map((one) => html`<p class="toast ${one.tone}">${one.text}</p>`)}</div>`, document.getElementById("app"));
}

let led = 0;

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !keysOn() || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, textarea, select, video, [contenteditable]")) return;
  if (event.key === "/") {
    event.preventDefault();
    const field = document.querySelector("[data-search]");
    if (field) field.focus();
    else {
      go("/jobs");
      document.querySelector("[data-search]")?.focus();
    }
  } else if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "g") led = performance.now();
  else if (led && performance.now() - led < 1500) {
    const found = NAV.find(([, , key]) => key === event.key);
    led = 0;
    if (found) go(found[1]);
  }
}

takeKey(update);
drawWith(draw);
listen(enter);
onPicture((picture) => view.picture?.(picture));
document.addEventListener("keydown", keys);
enter({ scroll: false, first: true });
watchConnection();
// Ages grow; nothing else is drawn that has not changed.
setInterval(() => document.hidden || update(), 1000);

// Workers, what each runs now, and what that uses; and the broker they all talk to.
import { ask, Resource } from "../lib/api.js";
import { bytes, duration, shortTask, since, whole } from "../lib/format.js";
import { html, nothing } from "../lib/lit.js";
import { bar, bones, empty, fraction, heading, queueLink, section, toned } from "../lib/parts.js";
import { state, totals, update } from "../lib/store.js";
import { t } from "../lib/words.js";

const SILENT_S = 6;
const RUNNING_MAX = 500;

export function workers() {
  const found = new Resource((signal) => ask(`/v1/jobs?state=running&limit=${RUNNING_MAX}`, { signal }), update, 3000);
  return {
    title: () => t("nav.workers"),
    picture(live) {
      const sum = totals(live.queues);
      found.follow(`${sum.running} ${sum.done} ${sum.running ? Math.floor(Date.now() / 3000) : 0}`);
    },
    close: () => found.close(),
    render() {
      const live = state.live;
      return html`${heading(t("nav.workers"), { sub: t("workers.sub") })}
        ${live ? (live.workers.length ? html`<div class="columns">${live.workers.map((worker) => card(worker, found.data?.jobs ?? []))}</div>` : html`<section class="card">${empty("workers", t("workers.none"), html`<code>zq worker --queue NAME</code>`)}</section>`) : html`<section class="card">${bones(5)}</section>`}
        ${live?.broker ? brokerCard(live.broker) : nothing}`;
    },
  };
}

function card(worker, jobs) {
  const slots = worker.queues.reduce((sum, one) => sum + one.slots, 0);
  const silent = worker.silent_s >= SILENT_S;
  // A worker's name is its host's and its own; jobs name the worker that has them.
  const mine = jobs.filter((job) => job.worker === worker.name);
  const cpu = mine.reduce((sum, job) => sum + job.usage.cpu_s, 0);
  const peak = mine.reduce((sum, job) => sum + job.usage.peak_rss_bytes, 0);
  const io = mine.reduce((sum, job) => sum + job.usage.read_bytes + job.usage.write_bytes, 0);
  const fact = (name, value) => html`<div><dt>${name}</dt><dd class="num">${value}</dd></div>`;
  return html`<section class="card"><header><h2>${worker.name}</h2>${silent ? toned("bad", t("worker.silent", { time: duration(worker.silent_s) })) : worker.running ? toned("running", t("worker.busy")) : toned("", t("worker.idle"))}</header>
    <div class="body"><p class="meter">${bar(slots ? worker.running / slots : 0, t("slots.label", { busy: worker.running, slots }), "")}<span class="num">${t("slots.label", { busy: worker.running, slots })}</span></p>
      <p>${worker.queues.map((one) => html`${queueLink(one.queue)} <span class="dim">× ${one.slots}</span> `)} ${worker.tags.map((tag) => html`<span class="tag">${tag}</span> `)}</p></div>
    ${mine.length ? html`<ul class="tree">${mine.map(running)}</ul>` : nothing}
    <div class="body"><dl class="facts">
      ${mine.length ? html`${fact(t("worker.cpu"), duration(cpu))}${fact(t("worker.memory"), peak ? bytes(peak) : "–")}${fact(t("worker.io"), io ? bytes(io) : "–")}` : nothing}
      ${worker.room ? fact(t("worker.room"), `${bytes(worker.room.disk_bytes)} / ${bytes(worker.room.memory_bytes)}`) : nothing}${fact(t("worker.heard"), t("time.ago", { time: duration(worker.silent_s) }))}${fact(t("worker.up"), duration(worker.connected_s))}</dl></div>
    <footer><span>${worker.software}</span></footer></section>`;
}

function running(job) {
  const part = fraction(job);
  const stalled = job.stalled ? toned("bad", t("job.stalled", { time: duration(job.quiet_s) })) : nothing;
  return html`<li><span><a href="/jobs/${job.id}">${shortTask(job.task)}</a> <span class="dim">${job.key}</span> ${stalled}</span>
    <span class="dim num">${part === null ? "" : `${Math.floor(100 * part)} % · `}${duration(since(job.started_at))}${job.usage.peak_rss_bytes ? ` · ${bytes(job.usage.peak_rss_bytes)}` : ""}</span></li>`;
}

function brokerCard(broker) {
  const fact = (name, value) => html`<div><dt>${name}</dt><dd class="num">${value}</dd></div>`;
  return section(t("broker"), html`<div class="body"><dl class="facts">
    ${fact(t("broker.up"), duration(broker.uptime_s))}${fact(t("broker.epoch"), whole(broker.epoch))}
    ${fact(t("broker.sessions"), whole(broker.sessions))}${fact(t("broker.journal"), bytes(broker.journal_bytes))}
    ${fact(t("broker.disk"), bytes(broker.disk_free_bytes))}${fact(t("broker.commit"), duration(broker.commit_p99_s))}
    ${fact(t("broker.commits"), whole(broker.commits))}</dl></div>`, { acts: broker.accepting ? toned("good", t("broker.accepting")) : toned("bad", t("broker.refusing")), foot: html`<span>${broker.software}</span>` });
}

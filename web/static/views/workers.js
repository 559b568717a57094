// Workers by machine, what each runs now and what that uses; and the broker they all talk to.
import { ask, Resource } from "../lib/api.js";
import { bytes, duration, shortTask, since, whole } from "../lib/format.js";
import { html, nothing } from "../lib/lit.js";
import { bones, empty, fraction, heading, queueLink, section, slotsOf, toned } from "../lib/parts.js";
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
      const head = heading(t("nav.workers"), { sub: t("workers.sub") });
      if (!live) return html`${head}<section class="card">${bones(6)}</section>`;
      const jobs = Map.groupBy(found.data?.jobs ?? [], (job) => job.worker);
      const hosts = [...Map.groupBy(live.workers, hostOf)].sort(([a], [b]) => a.localeCompare(b));
      return html`${head}${live.workers.length ? hosts.map(([name, there]) => host(name, there, jobs)) : html`<section class="card">${empty("workers", t("workers.none"), html`<code>zq worker --queue NAME</code>`)}</section>`}
        ${live.broker ? brokerCard(live.broker) : nothing}`;
    },
  };
}

// A worker is named HOST:QUEUES:NUMBER unless somebody named it otherwise.
const hostOf = (worker) => worker.name.split(":", 1)[0];

const uses = (jobs) => ({
  cpu: jobs.reduce((sum, job) => sum + job.usage.cpu_s, 0),
  memory: jobs.reduce((sum, job) => sum + job.usage.peak_rss_bytes, 0),
  io: jobs.reduce((sum, job) => sum + job.usage.read_bytes + job.usage.write_bytes, 0),
});

function host(name, there, jobs) {
  const slots = there.reduce((sum, worker) => sum + slotCount(worker), 0);
  const busy = there.reduce((sum, worker) => sum + worker.running, 0);
  const rooms = there.map((worker) => worker.room).filter(Boolean);
  const least = (key) => bytes(Math.min(...rooms.map((room) => room[key])));
  const note = html`${t("workers.host", { n: there.length, slots, busy })}${rooms.length ? html` · ${t("workers.room", { disk: least("disk_bytes"), memory: least("memory_bytes") })}` : nothing}`;
  return section(name, html`<div>${[...there].sort((a, b) => a.name.localeCompare(b.name)).map((worker) => row(worker, jobs.get(worker.name) ?? []))}</div>`, { note });
}

const slotCount = (worker) => worker.queues.reduce((sum, one) => sum + one.slots, 0);

function row(worker, mine) {
  const silent = worker.silent_s >= SILENT_S;
  const used = uses(mine);
  const slots = slotCount(worker);
  return html`<div class="worker">
    <div><span class="main">${worker.name}</span> ${silent ? toned("bad", t("worker.silent", { time: duration(worker.silent_s) })) : worker.running ? toned("running", t("worker.busy")) : toned("", t("worker.idle"))}
      <span class="under">${worker.queues.map((one) => html`${queueLink(one.queue)} × ${one.slots} `)} ${worker.tags.map((tag) => html`<span class="tag">${tag}</span> `)}</span></div>
    <div>${slotsOf({ slots, free: slots - worker.running })}</div>
    <div class="now-uses">${mine.length ? html`<span title=${t("worker.cpu")}>CPU ${duration(used.cpu)}</span>${used.memory ? html` · <span title=${t("worker.memory")}>${bytes(used.memory)}</span>` : nothing}${used.io ? html` · <span title=${t("worker.io")}>${t("worker.disk", { size: bytes(used.io) })}</span>` : nothing}<br>` : nothing}
      ${t("worker.up")} ${duration(worker.connected_s)} · ${worker.software}</div>
    ${mine.length ? html`<ul class="tree">${mine.map(running)}</ul>` : nothing}</div>`;
}

function running(job) {
  const part = fraction(job);
  const { usage } = job;
  const figures = [part === null ? "" : `${Math.floor(100 * part)} %`, duration(since(job.started_at)), usage.cpu_s ? `CPU ${duration(usage.cpu_s)}` : "", usage.peak_rss_bytes ? bytes(usage.peak_rss_bytes) : "", usage.processes > 1 ? t("worker.processes", { n: usage.processes }) : ""];
  return html`<li><span><a href="/jobs/${job.id}">${shortTask(job.task)}</a> <span class="dim">${job.key}</span> ${job.stalled ? toned("bad", t("job.stalled", { time: duration(job.quiet_s) })) : nothing}</span>
    <span class="dim num">${figures.filter(Boolean).join(" · ")}</span></li>`;
}

function brokerCard(broker) {
  const fact = (name, value) => html`<div><dt>${name}</dt><dd class="num">${value}</dd></div>`;
  return section(t("broker"), html`<div class="body"><dl class="facts four">
    ${fact(t("broker.up"), duration(broker.uptime_s))}${fact(t("broker.epoch"), whole(broker.epoch))}
    ${fact(t("broker.sessions"), whole(broker.sessions))}${fact(t("broker.journal"), bytes(broker.journal_bytes))}
    ${fact(t("broker.disk"), bytes(broker.disk_free_bytes))}${fact(t("broker.commit"), duration(broker.commit_p99_s))}
    ${fact(t("broker.commits"), whole(broker.commits))}${fact(t("broker.version"), broker.software)}</dl></div>`, { acts: broker.accepting ? toned("good", t("broker.accepting")) : toned("bad", t("broker.refusing")) });
}

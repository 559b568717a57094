// What the clock submits: when next, when last, how late, what was missed; and what an operator may do about it.
import { ask, enc, post, Resource } from "../lib/api.js";
import { confirm } from "../lib/ask.js";
import { duration, shortTask } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, nothing } from "../lib/lit.js";
import { acting, chip, count, empty, heading, jobLink, queueLink, run, section, shown, when } from "../lib/parts.js";
import { now, toast, update } from "../lib/store.js";
import { t } from "../lib/words.js";

const LATE_S = 5;

export function schedules() {
  const found = new Resource((signal) => ask("/v1/schedules", { signal }), update, 1500);

  async function pause(one) {
    const path = `/v1/schedules/${enc(one.name)}`;
    const act = one.paused
      ? run(() => post(`${path}:resume`), t("schedules.resumed", { name: one.name }))
      : confirm({
          title: t("schedules.pause-ask", { name: one.name }),
          body: () => html`<p>${t("schedules.pause-text")}</p>`,
          label: t("schedules.pause"),
          act: () => post(`${path}:pause`),
        });
    await act;
    found.refresh();
  }

  async function runNow(one) {
    const made = await confirm({
      title: t("schedules.run-ask", { name: one.name }),
      body: () => html`<p>${t("schedules.run-text")}</p>`,
      label: t("schedules.run"),
      act: () => post(`/v1/schedules/${enc(one.name)}:run`),
    });
    if (made) toast(t("schedules.ran", { name: one.name }));
    found.refresh();
  }

  const acts = (one) => acting(html`${one.runnable ? html`<button type="button" class="button small" aria-label="${t("schedules.run")}: ${one.name}" @click=${() => runNow(one)}>${icon("play")}${t("schedules.run")}</button>` : nothing}
    <button type="button" class="button small" aria-label="${t(one.paused ? "schedules.resume" : "schedules.pause")}: ${one.name}" @click=${() => pause(one)}>${icon(one.paused ? "play" : "pause")}${t(one.paused ? "schedules.resume" : "schedules.pause")}</button>`);

  const row = (one) => html`<tr>
      <td><span class="main">${one.name}</span> ${one.paused ? html`<span class="chip warn">${t("schedules.paused")}</span>` : nothing}<span class="under mono" title=${one.task}>${shortTask(one.task)}</span></td>
      <td class="whole" data-label=${t("schedules.rule")}>${one.every_s ? t("schedules.every-s", { time: duration(one.every_s) }) : html`<span class="mono">${one.cron || one.rule}</span>`}${one.zone && one.cron ? html`<span class="under">${one.zone}</span>` : nothing}</td>
      <td data-label=${t("queue")}>${queueLink(one.queue)}</td>
      <td data-label=${t("schedules.next")}>${when(one.next_at)}</td>
      <td class="whole" data-label=${t("schedules.last")}>${one.last ? html`${when(one.last.nominal_at)} ${one.last.state ? chip(one.last.state) : nothing}<span class="under">${jobLink(one.last.job_id)}</span>` : html`<span class="dim">${t("schedules.never")}</span>`}</td>
      <td class="r" data-label=${t("schedules.late")}>${one.last ? html`<span class=${one.last.late_s > LATE_S ? "late" : ""}>${duration(one.last.late_s)}</span>` : html`<span class="zero">–</span>`}</td>
      <td class="r" data-label=${t("schedules.missed")} title="${t("schedules.misfire")}: ${t.maybe(`misfire.${one.misfire}`) || one.misfire}">${count(one.missed)}${one.overlapped ? html`<span class="under">${t("schedules.overlapped", { n: one.overlapped })}</span>` : nothing}</td>
      <td class="tight wide"><span class="acts">${acts(one)}</span></td></tr>`;

  const list = ({ schedules: all }) => all.length
    ? html`<div class="scroll"><table class="cards">
        <thead><tr><th>${t("schedule")}</th><th>${t("schedules.rule")}</th><th>${t("queue")}</th><th>${t("schedules.next")}</th><th>${t("schedules.last")}</th><th class="r">${t("schedules.late")}</th><th class="r">${t("schedules.missed")}</th><th><span class="hidden">${t("col.acts")}</span></th></tr></thead>
        <tbody>${all.map(row)}</tbody></table></div>`
    : empty("schedules", t("schedules.none"), html`<code>[schedules.NAME]</code> zq.toml`);

  return {
    title: () => t("nav.schedules"),
    picture(live) {
      const due = found.data?.schedules.some((one) => one.next_at && new Date(one.next_at) < now());
      found.follow(`${live.queues.map((queue) => queue.accepted + queue.done).join(" ")} ${due ? Math.floor(now() / 2000) : 0}`);
    },
    close: () => found.close(),
    render: () => html`${heading(t("nav.schedules"), { sub: t("schedules.sub") })}
      ${found.data && !found.data.enabled ? html`<ul class="alarms"><li class="alarm"><strong>${t("schedules.off")}</strong></li></ul>` : nothing}
      <section class="card">${shown(found, list)}</section>
      ${found.data?.one_shots.length ? section(t("schedules.once"), oneShots(found.data.one_shots), { note: t("schedules.once-note", { n: found.data.one_shots.length }) }) : nothing}`,
  };
}

const oneShots = (all) => html`<div class="scroll"><table class="cards">
  <thead><tr><th>${t("job.key")}</th><th>${t("task")}</th><th>${t("schedules.next")}</th><th>${t("job")}</th></tr></thead>
  <tbody>${all.map((one) => html`<tr><td><span class="main mono">${one.key}</span></td><td data-label=${t("task")}>${shortTask(one.task)}</td>
    <td data-label=${t("schedules.next")}>${when(one.at)}</td><td>${jobLink(one.job_id)}</td></tr>`)}</tbody></table></div>`;

// What the clock submits: when next, when last, how late.
import { ask, Resource } from "../lib/api.js";
import { duration } from "../lib/format.js";
import { html } from "../lib/lit.js";
import { chip, empty, heading, jobLink, queueLink, shown, when } from "../lib/parts.js";
import { now, update } from "../lib/store.js";
import { t } from "../lib/words.js";

const LATE_S = 5;

export function schedules() {
  const found = new Resource((signal) => ask("/v1/schedules", { signal }), update, 1500);
  return {
    title: () => t("nav.schedules"),
    picture(live) {
      const due = found.data?.schedules.some((one) => one.next_at && new Date(one.next_at) < now());
      found.follow(`${live.queues.map((queue) => queue.accepted + queue.done).join(" ")} ${due ? Math.floor(now() / 2000) : 0}`);
    },
    close: () => found.close(),
    render: () => html`${heading(t("nav.schedules"), { sub: t("schedules.sub") })}
      ${found.data && !found.data.enabled ? html`<ul class="alarms"><li class="alarm"><strong>${t("schedules.off")}</strong></li></ul>` : ""}
      <section class="card">${shown(found, list)}</section>`,
  };
}

function list({ schedules: all }) {
  if (!all.length) return empty("schedules", t("schedules.none"), html`<code>[schedules.NAME]</code> zq.toml`);
  return html`<div class="scroll"><table class="cards">
    <thead><tr><th>${t("schedule")}</th><th>${t("queue")}</th><th class="r">${t("schedules.every")}</th><th>${t("schedules.next")}</th><th>${t("schedules.last")}</th><th class="r">${t("schedules.late")}</th><th>${t("schedules.misfire")}</th></tr></thead>
    <tbody>${all.map((one) => html`<tr>
      <td><span class="main">${one.name}</span><span class="under mono">${one.task}</span></td>
      <td data-label=${t("queue")}>${queueLink(one.queue)}</td>
      <td class="r" data-label=${t("schedules.every")}>${duration(one.every_s)}</td>
      <td data-label=${t("schedules.next")}>${when(one.next_at)}</td>
      <td data-label=${t("schedules.last")}>${one.last ? html`${when(one.last.nominal_at)} ${chip(one.last.state)} ${jobLink(one.last.job_id)}` : html`<span class="dim">${t("schedules.never")}</span>`}</td>
      <td class="r" data-label=${t("schedules.late")}>${one.last ? html`<span class=${one.last.late_s > LATE_S ? "error" : ""}>${duration(one.last.late_s)}</span>` : html`<span class="zero">–</span>`}</td>
      <td data-label=${t("schedules.misfire")}>${t.maybe(`misfire.${one.misfire}`) || one.misfire}</td>
    </tr>`)}</tbody></table></div>`;
}

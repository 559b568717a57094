// One student: presence, segments, the merge, and the recording itself, playing here.
import { ask, enc, Resource } from "../lib/api.js";
import { bytes, clockLength, exact, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, nothing } from "../lib/lit.js";
import { bones, empty, heading, jobLink, section, trouble, when } from "../lib/parts.js";
import { update } from "../lib/store.js";
import { t } from "../lib/words.js";
import { recordingState } from "./exams.js";

const STEPS_S = [-30, -10, 10, 30];
const SPEEDS = [1, 2, 4, 8];

export function student({ params }) {
  const path = `/v1/exams/${enc(params.exam)}/students/${enc(params.student)}`;
  const found = new Resource((signal) => ask(path, { signal }), update, 2500);
  const following = new Resource((signal) => ask(`/v1/exams/${enc(params.exam)}?limit=1&after=${enc(params.student)}`, { signal }), update);
  let speed = 1;
  const video = () => document.querySelector(".theatre video");

  function step(s) {
    const player = video();
    if (player) player.currentTime = Math.max(0, Math.min(player.duration || 0, player.currentTime + s));
  }

  function setSpeed(factor) {
    speed = factor;
    const player = video();
    if (player) player.playbackRate = factor;
    update();
  }

  found.refresh();
  following.refresh();
  return {
    title: () => found.data?.name || params.student,
    picture: (live) => found.follow(live.queues.filter((queue) => ["status_check", "video_merge"].includes(queue.name)).map((queue) => `${queue.done} ${queue.running} ${queue.dead}`).join(" ")),
    close: () => [found, following].forEach((one) => one.close()),
    render() {
      const crumb = html`<a href="/exams">${t("nav.exams")}</a> / <a href="/exams/${enc(params.exam)}">${params.exam}</a>`;
      if (found.waiting) return html`${heading(params.student, { crumb })}<section class="card">${bones(6)}</section>`;
      if (!found.data) return html`${heading(params.student, { crumb })}<section class="card">${found.error.status === 404 ? empty("search", t("student.unknown")) : trouble(found.error)}</section>`;
      const one = found.data;
      return html`${heading(one.name || one.id, { crumb, acts: next(), sub: html`${one.id} · <i class="presence ${one.status}"></i>${t(`presence.${one.status}`)}` })}
        <div class="split"><div class="pile">${theatre(one)}${one.recording?.video ? controls(one.recording) : nothing}</div>
        <div class="pile">${section(t("student.facts"), facts(one))}${one.recording?.error ? section(t("job.error"), html`<div class="body"><pre class="code bad error" tabindex="0">${one.recording.error}</pre></div>`) : nothing}</div></div>`;
    },
  };

  function next() {
    const one = following.data?.students[0];
    return one ? html`<a class="button" href="/exams/${enc(params.exam)}/students/${enc(one.id)}">${t("student.next")} <span class="dim">${one.name || one.id}</span></a>` : nothing;
  }

  function theatre(one) {
    const recording = one.recording;
    if (!recording?.video) {
      const why = !recording ? "student.no-recording" : recording.state === "failed" ? "student.merge-failed" : "student.merging";
      return html`<div class="theatre"><div class="none">${icon("video")}<strong>${t(why)}</strong><span>${t(`${why}-text`)}</span></div></div>`;
    }
    // Each merge is another file: a browser must not mix the ranges of two.
    const source = `${recording.video}?v=${enc(recording.finished_at ?? "")}`;
    return html`<div class="theatre"><video controls preload="metadata" src=${source} aria-label="${t("student.video", { name: one.name || one.id })}" @ratechange=${(event) => ((speed = event.target.playbackRate), update())}></video></div>`;
  }

  function controls(recording) {
    return html`<div class="filters">
      <div class="segments" role="group" aria-label=${t("student.skip")}>${STEPS_S.map((s) => html`<button type="button" @click=${() => step(s)}>${s > 0 ? "+" : "−"}${t("unit.s", { n: Math.abs(s) })}</button>`)}</div>
      <div class="segments" role="group" aria-label=${t("student.speed")}>${SPEEDS.map((factor) => html`<button type="button" aria-pressed=${speed === factor} @click=${() => setSpeed(factor)}>${factor}×</button>`)}</div>
      <a class="button" href=${recording.video} download>${t("student.download")} <span class="dim">${bytes(recording.size_bytes)}</span></a></div>`;
  }

  function facts(one) {
    const recording = one.recording;
    const rows = [
      [t("students.heard"), when(one.last_active_at)],
      [t("students.segments"), one.segments === null ? "?" : whole(one.segments)],
      [t("students.recording"), recordingState(recording), "whole"],
      recording && [t("student.job"), jobLink(recording.job_id)],
      recording?.video && [t("student.length"), clockLength(recording.duration_s)],
      recording?.video && [t("student.from"), t("student.from-segments", { n: recording.segments })],
      recording && [t("student.requested"), html`<span title=${exact(recording.requested_at)}>${when(recording.requested_at)}</span>`],
      recording?.finished_at && [t("student.finished"), when(recording.finished_at)],
    ];
    return html`<div class="body"><dl class="facts">${rows.filter(Boolean).map(([name, value, width = ""]) => html`<div class=${width}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></div>`;
  }
}

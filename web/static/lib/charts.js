// Charts as SVG that fills its place: the picture is stretched, its lines and words are not.
import { clock } from "./format.js";
import { html, nothing, svg } from "./lit.js";
import { update } from "./store.js";
import { t } from "./words.js";

const W = 1000;
const H = 200;

// Runs of points without a gap, as [x, y].
function runs(values, top, width = W, height = H) {
  const step = width / Math.max(values.length - 1, 1);
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null || value === undefined) run = null;
    else {
      if (!run) found.push((run = []));
      run.push([index * step, height - (height * value) / top]);
    }
  });
  return found;
}

const text = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

function lines(values, top, tone, filled, width, height) {
  return runs(values, top, width, height).map((run) => {
    // One point alone is a short line.
    const points = run.length > 1 ? run : [run[0], [run[0][0] + 3, run[0][1]]];
    const base = height ?? H;
    return svg`${filled ? svg`<polygon class="area t-${tone}" points="${points[0][0].toFixed(1)},${base} ${text(points)} ${points.at(-1)[0].toFixed(1)},${base}"/>` : nothing}<polyline class="line t-${tone}" points="${text(points)}"/>`;
  });
}

export function spark(all, tone) {
  const first = all.findIndex((v) => v !== null && v !== undefined);
  const values = first < 0 ? [] : all.slice(first);
  const known = values.filter((v) => v !== null && v !== undefined);
  if (known.length < 2) return nothing;
  const top = Math.max(...known, 0.001) * 1.08;
  return html`<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">${lines(values, top, tone, true, 100, 30)}</svg>`;
}

// 1, 2 or 5 times a power of ten, in so many steps that the largest value fits.
function scale(most, kind) {
  if (kind === "bytes") return binaryScale(most);
  const integers = kind === "whole";
  const rough = Math.max(most, integers ? 4 : 0.1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough - 1e-9);
  if (integers) step = Math.max(1, Math.round(step));
  const steps = Math.max(1, Math.ceil(most / step - 1e-9)) || 1;
  return { top: step * steps, ticks: Array.from({ length: steps + 1 }, (_, i) => i * step) };
}

function binaryScale(most) {
  const step = 2 ** Math.ceil(Math.log2(Math.max(most, 1 << 20) / 4));
  const steps = Math.max(1, Math.ceil(most / step - 1e-9));
  return { top: step * steps, ticks: Array.from({ length: steps + 1 }, (_, i) => i * step) };
}

const MINUTE_MS = 60000;
const STEPS_MS = [1000, 2000, 5000, 10000, 15000, 30000, MINUTE_MS, 2 * MINUTE_MS, 5 * MINUTE_MS, 10 * MINUTE_MS, 15 * MINUTE_MS, 30 * MINUTE_MS, 60 * MINUTE_MS, 120 * MINUTE_MS, 180 * MINUTE_MS, 360 * MINUTE_MS];
const MARKS_MAX = 5;
const hovers = new Map();
const POINTS_MIN = 30;

// What is not known is not shown as an empty plain: the time begins where the knowledge does, or a little before.
function cropped(series, at, begins) {
  const known = at.findIndex((ms) => ms >= begins);
  const first = Math.max(0, Math.min(known < 0 ? at.length : known - 1, at.length - POINTS_MIN));
  return first ? [series.map((one) => ({ ...one, values: one.values.slice(first) })), at.slice(first)] : [series, at];
}

// series: [{ name, tone, values }]; all as long as `at` (milliseconds). `begins`: before it nothing is known.
export function chart({ id, series: allSeries, at: allTimes, begins = 0, unit, label, format, kind = "", height = "11rem", times = clock, caption = nothing }) {
  const [series, at] = begins ? cropped(allSeries, allTimes, begins) : [allSeries, allTimes];
  const known = series.flatMap((one) => one.values).filter((v) => v !== null && v !== undefined);
  const { top, ticks } = scale(Math.max(0, ...known), kind);
  const hover = hovers.get(id) ?? null;
  const span = at.length > 1 ? at.at(-1) - at[0] : 1;
  const blind = begins > at[0] ? Math.min(1, (begins - at[0]) / span) : 0;
  const newest = series.map((one) => `${one.name} ${format(one.values.findLast((v) => v !== null) ?? 0)}${unit}`).join(", ");
  const move = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    point(Math.round(((event.clientX - box.left) / box.width) * (at.length - 1)));
  };
  const point = (index) => {
    hovers.set(id, index === null ? null : Math.max(0, Math.min(at.length - 1, index)));
    update();
  };
  const key = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") point(null);
    else if (step) {
      event.preventDefault();
      point((hover ?? at.length) + step);
    }
  };
  return html`<figure class="chart" .style=${`--plot:${height}`}>${caption === nothing ? nothing : html`<figcaption>${caption}</figcaption>`}
    <div class="plot" role="img" tabindex="0" aria-label="${label}. ${known.length ? newest : t("chart.none")}"
      @pointermove=${move} @pointerleave=${() => point(null)} @keydown=${key} @blur=${() => point(null)}>
      ${ticks.map((tick) => html`<span class="y" .style=${`top:${(100 - (100 * tick) / top).toFixed(2)}%`}>${format(tick)}</span>`)}
      ${blind > 0.01 ? html`<span class="unknown" .style=${`width:${(100 * blind).toFixed(2)}%`}></span>` : nothing}
      <svg class="lines" viewBox="0 0 ${W} ${H}" preserveAspectRatio="none" aria-hidden="true">
        ${ticks.map((tick) => svg`<line class="grid" x1="0" x2="${W}" y1="${H - (H * tick) / top}" y2="${H - (H * tick) / top}"/>`)}
        ${series.map((one, index) => lines(one.values, top, one.tone, index === 0))}
      </svg>
      ${known.length ? nothing : html`<span class="none">${t("chart.none")}</span>`}
      ${hover === null || hover >= at.length ? nothing : tip(series, at, hover, format, unit, times)}
    </div>
    <div class="x" aria-hidden="true">${marks(at, times)}</div>
  </figure>`;
}

function tip(series, at, index, format, unit, times) {
  const part = index / Math.max(1, at.length - 1);
  const side = part > 0.6 ? `right:calc(${(100 - 100 * part).toFixed(2)}% + 10px)` : `left:calc(${(100 * part).toFixed(2)}% + 10px)`;
  return html`<span class="cross" .style=${`left:${(100 * part).toFixed(2)}%`}></span>
    <span class="tip" .style=${side}><span>${times(at[index], true)}</span>
      ${series.map((one) => html`<span><i class="b-${one.tone}"></i>${one.name}<b>${one.values[index] === null || one.values[index] === undefined ? "–" : `${format(one.values[index])}${unit}`}</b></span>`)}
    </span>`;
}

// At whole minutes of the reader's clock, or at whole steps from the beginning where times are told from there.
function marks(at, times) {
  if (at.length < 2) return nothing;
  const onClock = times === clock;
  const [first, last] = [at[0], at.at(-1)];
  const zero = onClock ? new Date(first).getTimezoneOffset() * MINUTE_MS : first;
  const step = STEPS_MS.find((ms) => (last - first) / ms <= MARKS_MAX && (!onClock || ms >= MINUTE_MS)) ?? last - first;
  const found = [];
  for (let ms = zero + Math.ceil((first - zero) / step) * step; ms <= last; ms += step) found.push(ms);
  return found.map((ms) => html`<span .style=${`left:${((100 * (ms - first)) / (last - first)).toFixed(2)}%`}>${times(ms)}</span>`);
}

export const legend = (series, format, unit) =>
  html`<div class="legend">${series.map((one) => html`<span><i class="b-${one.tone}"></i>${one.name} <b>${format(one.values.findLast((v) => v !== null && v !== undefined) ?? 0)}${unit}</b></span>`)}</div>`;

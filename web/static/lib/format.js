// Numbers, times and sizes as people read them.
import { now } from "./store.js";
import { locale, t } from "./words.js";

export const whole = (n) => Math.round(n).toLocaleString(locale());

export function short(n) {
  return n < 100000 ? whole(n) : new Intl.NumberFormat(locale(), { notation: "compact", maximumFractionDigits: 1 }).format(n);
}

export function rate(perS) {
  if (perS === null || perS === undefined) return "–";
  const digits = perS === 0 || perS >= 100 ? 0 : perS >= 10 ? 1 : 2;
  return perS.toLocaleString(locale(), { maximumFractionDigits: digits });
}

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n) {
  let at = 0;
  while (n >= 1024 && at < BINARY.length - 1) {
    n /= 1024;
    at += 1;
  }
  return `${n.toLocaleString(locale(), { maximumFractionDigits: n < 10 && at ? 1 : 0 })} ${BINARY[at]}`;
}

const part = (n, unit) => t(`unit.${unit}`, { n: String(n) });

// Two units at most: 1 h 5 min, 3 d 2 h.
export function duration(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return "–";
  if (s < 0.0995) return part(Math.round(s * 1000), "ms");
  if (s < 9.95) return part((Math.round(s * 10) / 10).toLocaleString(locale()), "s");
  const whole = Math.round(s);
  if (whole < 60) return part(whole, "s");
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  const [unit, size] = units[first];
  const rest = units[first + 1];
  const more = rest ? Math.floor((whole % size) / rest[1]) : 0;
  const text = part(Math.floor(whole / size), unit);
  return more ? `${text} ${part(more, rest[0])}` : text;
}

// 1:02:33, as players have it.
export function clockLength(s) {
  const whole = Math.round(s);
  const two = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  return minutes >= 60 ? `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export const exact = (text) =>
  new Date(text).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "medium" });
export const clock = (ms, seconds = false) =>
  new Date(ms).toLocaleTimeString(locale(), { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }) });

export function dayAndTime(text) {
  const at = new Date(text);
  const today = new Date(now());
  const time = at.toLocaleTimeString(locale(), { hour: "2-digit", minute: "2-digit" });
  if (at.toDateString() === today.toDateString()) return time;
  return `${at.toLocaleDateString(locale(), { day: "numeric", month: "short", ...(at.getFullYear() !== today.getFullYear() && { year: "numeric" }) })} ${time}`;
}

export function relative(text) {
  const s = (new Date(text).getTime() - now()) / 1000;
  if (Math.abs(s) < 2) return t(s > 0 ? "time.soon" : "time.now");
  return s < 0 ? t("time.ago", { time: roughly(-s) }) : t("time.in", { time: roughly(s) });
}

// One unit, as far away as it is: it changes seldom.
function roughly(s) {
  if (s < 60) return part(Math.round(s), "s");
  if (s < 5400) return part(Math.round(s / 60), "min");
  return s < 129600 ? part(Math.round(s / 3600), "h") : part(Math.round(s / 86400), "d");
}

export const since = (text) => Math.max(0, (now() - new Date(text).getTime()) / 1000);
export const firstLine = (text) => text.trim().split("\n", 1)[0];
export const shortTask = (name) => name.split(".").pop();
export const shortId = (id) => `${id.slice(0, 8)}…${id.slice(-4)}`;

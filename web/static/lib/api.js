// Calls to the API. Looking needs the cookie; changing needs the key of this tab, which no other site can send.
import { t } from "./words.js";

const KEY = /^#operate=([0-9a-f]{64})$/;
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("zq-operate") : null;
let onKey = () => {};

// The link with the token brings the key behind the #, which is never sent to any server. A tab that was opened from
// another one asks that for it: only pages of this very host and port can hear the question.
export function takeKey(changed) {
  onKey = changed;
  const given = location.hash.match(KEY);
  if (given) {
    sessionStorage.setItem("operate", given[1]);
    history.replaceState(null, "", location.pathname + location.search);
  }
  channel?.addEventListener("message", ({ data }) => {
    const mine = sessionStorage.getItem("operate");
    if (data === "who has the key?" && mine) channel.postMessage(`#operate=${mine}`);
    const offered = !mine && typeof data === "string" && data.match(KEY);
    if (offered) {
      sessionStorage.setItem("operate", offered[1]);
      onKey();
    }
  });
  if (!mayOperate()) channel?.postMessage("who has the key?");
}

export const mayOperate = () => sessionStorage.getItem("operate") !== null;

export class Failure extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.kind = (problem.type ?? "").replace("urn:zq:problem:", "");
  }
}

export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers.Authorization = `Bearer ${sessionStorage.getItem("operate")}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { detail: t("error.unreachable") });
  }
  const text = await answer.text();
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    throw new Failure(answer.status, {});
  }
  if (!answer.ok) throw new Failure(answer.status, found ?? {});
  return found;
}

export const post = (path, body) => ask(path, { method: "POST", body });
export const enc = encodeURIComponent;

// What a person reads of a failure: in the page's language where its kind is known, with the server's own words.
export function said(error) {
  const known = t.maybe(`problem.${error.kind}`);
  return known ? `${known} ${error.message}` : error.message;
}

// What is asked for once, kept while it is asked for again, and asked for again when its sign in the picture changes.
export class Resource {
  constructor(load, changed, restMs = 2000) {
    this.data = null;
    this.error = null;
    this.busy = false;
    this.stale = false; // what is there answers an earlier question
    this.#load = load;
    this.#changed = changed;
    this.#restMs = restMs;
  }
  #load; #changed; #restMs;
  #sign; #timer = 0; #askedAt = -Infinity; #abort = new AbortController(); #again = false; #closed = false;

  get waiting() {
    return this.data === null && this.error === null;
  }

  // `sign` changes when what was loaded is no longer what there is.
  follow(sign) {
    if (sign === this.#sign) return;
    const first = this.#sign === undefined;
    this.#sign = sign;
    if (!first || this.data === null) this.soon();
  }

  soon() {
    if (this.#closed || this.#timer) return;
    const rest = Math.max(0, this.#restMs - (performance.now() - this.#askedAt));
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.refresh();
    }, rest);
  }

  async refresh() {
    if (this.busy) {
      this.#again = true;
      return;
    }
    this.busy = true;
    this.#askedAt = performance.now();
    const signal = this.#abort.signal;
    try {
      const found = await this.#load(signal);
      if (signal.aborted) return;
      this.data = found;
      this.error = null;
      this.stale = false;
    } catch (error) {
      if (signal.aborted) return;
      this.error = error;
      if (this.stale) this.data = null;
      this.stale = false;
    } finally {
      this.busy = false;
    }
    this.#changed();
    if (this.#again) {
      this.#again = false;
      this.soon();
    }
  }

  // Another question from now on: what was found for the old one stays, paler, until there is something better.
  restart() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.busy = false;
    this.stale = this.data !== null;
    this.error = null;
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#changed();
    return this.refresh();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#abort.abort();
  }
}

// The one stream of the page: a picture of the whole, when something has changed. Closed while nobody looks: a browser
// has few connections for one server, and a hidden tab needs none.
import { state, tellPicture, update } from "./store.js";

const AGAIN_MS = 3000;
const SILENT_MS = 16000;
let stream = null;
let again = 0;

export function connect() {
  clearTimeout(again);
  stream?.close();
  stream = null;
  if (document.hidden) return;
  stream = new EventSource("/page/live");
  stream.addEventListener("picture", ({ data }) => take(JSON.parse(data)));
  stream.onerror = () => {
    // The browser comes again by itself, unless it was refused: then it is for us to ask why.
    if (stream?.readyState === EventSource.CLOSED) refused();
    else lost();
  };
}

function take(picture) {
  const away = picture.broker === null;
  // What was known of the queues is worth more than nothing, as long as it is said to be old.
  if (away && state.live) picture = { ...state.live, alarms: picture.alarms, at: picture.at };
  // What the page calls dead letters are those that are there.
  if (!away) for (const queue of picture.queues) queue.dead = picture.dead[queue.name] ?? 0;
  state.live = picture;
  state.old = away;
  state.connection = "live";
  state.heardAt = Date.now();
  state.skewMs = new Date(picture.at).getTime() - Date.now();
  tellPicture(picture);
  update();
}

function lost() {
  if (state.connection !== "locked") state.connection = "lost";
  update();
}

async function refused() {
  lost();
  try {
    const answer = await fetch("/page/live", { method: "HEAD" });
    if (answer.status === 401) {
      state.connection = "locked";
      update();
      return;
    }
  } catch {
    // The server is away: it is asked again.
  }
  again = setTimeout(connect, AGAIN_MS);
}

export function watchConnection() {
  document.addEventListener("visibilitychange", connect);
  window.addEventListener("pagehide", () => stream?.close());
  window.addEventListener("pageshow", (event) => event.persisted && connect());
  window.addEventListener("online", connect);
  setInterval(() => {
    if (!document.hidden && state.connection === "live" && Date.now() - state.heardAt > SILENT_MS) {
      lost();
      connect();
    }
  }, 2000);
  connect();
}

// What all views share, and the one place that draws: any number of changes in a frame is one drawing.
export const state = {
  live: null, // the newest picture of the whole; null until the first has come
  old: false, // the broker does not answer: what is shown is from before
  connection: "connecting", // live, lost, locked
  heardAt: 0,
  skewMs: 0, // the server's clock less this one's
  toasts: [],
};

const hearers = new Set();
let draw = () => {};
let asked = false;

export function drawWith(fn) {
  draw = fn;
}

export function update() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
}

// Drawn when it returns: for what is needed in the page at once, such as where the focus shall go.
export const updateNow = () => draw();

export const now = () => Date.now() + state.skewMs;

// Told of every picture. Returns how to stop.
export function onPicture(fn) {
  hearers.add(fn);
  return () => hearers.delete(fn);
}

export function tellPicture(picture) {
  for (const fn of hearers) fn(picture);
}

let toastNumber = 0;

export function toast(text, tone = "") {
  const one = { number: ++toastNumber, text, tone };
  state.toasts = [...state.toasts, one].slice(-4);
  setTimeout(() => {
    state.toasts = state.toasts.filter((other) => other !== one);
    update();
  }, tone === "bad" ? 9000 : 4500);
  update();
}

export const totals = (queues) => {
  const sum = { scheduled: 0, ready: 0, running: 0, done: 0, dead: 0, cancelled: 0, expired: 0, slots: 0, free: 0, accepted: 0 };
  for (const queue of queues) for (const key of Object.keys(sum)) sum[key] += queue[key];
  return sum;
};

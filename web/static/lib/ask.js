// Questions before something is done: one dialog, which says what will happen and to how many.
import { html, nothing } from "./lit.js";
import { said } from "./api.js";
import { toast, update, updateNow } from "./store.js";
import { t } from "./words.js";

let open = null;

// `body` draws the inside; `act` does it, and its value is what `confirm` resolves to; undefined for no.
export function confirm({ title, body, label, tone = "", act }) {
  return new Promise((resolve) => {
    open = { title, body, label, tone, act, resolve, busy: false, error: null };
    // At once: the next key that is pressed is meant for the dialog.
    updateNow();
    const dialog = document.getElementById("ask");
    if (!dialog.open) dialog.showModal();
    dialog.querySelector("[data-first]")?.focus();
  });
}

function close(value) {
  const { resolve } = open;
  open = null;
  document.getElementById("ask").close();
  update();
  resolve(value);
}

async function go(event) {
  event.preventDefault();
  const asked = open;
  if (asked.busy) return;
  asked.busy = true;
  asked.error = null;
  update();
  try {
    const value = await asked.act(new FormData(event.target));
    if (open === asked) close(value ?? true);
  } catch (error) {
    asked.busy = false;
    asked.error = said(error);
    if (open !== asked) toast(asked.error, "bad");
    update();
  }
}

export function askDialog() {
  const one = open;
  return html`<dialog class="ask" id="ask" aria-labelledby="ask-title" @cancel=${(event) => (event.preventDefault(), !open?.busy && open && close(undefined))}>
    ${one
      ? html`<form class="inner" method="dialog" @submit=${go}>
          <h2 id="ask-title">${one.title}</h2>
          ${one.body()}
          ${one.error ? html`<p class="error" role="alert">${one.error}</p>` : nothing}
          <div class="acts">
            <button type="button" class="button" data-first ?disabled=${one.busy} @click=${() => close(undefined)}>${t("ask.no")}</button>
            <button type="submit" class="button primary ${one.tone}" ?disabled=${one.busy}>${one.busy ? t("ask.busy") : one.label}</button>
          </div>
        </form>`
      : nothing}
  </dialog>`;
}

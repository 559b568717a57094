// Dead letters by kind of error: five hundred equal failures are one row and one decision.
import { ask, Resource } from "../lib/api.js";
import { bulk, filterOf } from "../lib/bulk.js";
import { firstLine, whole } from "../lib/format.js";
import { icon } from "../lib/icons.js";
import { html, live as current, nothing, repeat } from "../lib/lit.js";
import { acting, empty, heading, jobLink, queueLink, shown, when } from "../lib/parts.js";
import { setQuery } from "../lib/router.js";
import { parse, write } from "../lib/search.js";
import { update } from "../lib/store.js";
import { t } from "../lib/words.js";

export function dead({ query }) {
  let opened = query().get("group") ?? "";
  const asked = () => ({ queue: query().get("queue") ?? "", task: query().get("task") ?? "", error: query().get("error") ?? "", where: query().getAll("where") });

  function path() {
    const { where, ...named } = asked();
    const text = new URLSearchParams();
    for (const [name, value] of Object.entries(named)) if (value) text.set(name, value);
    for (const one of where) text.append("where", one);
    return `/v1/dead/groups?${text}`;
  }

  const found = new Resource((signal) => ask(path(), { signal }), update, 2500);
  const act = async (action, filter) => (await bulk(action, { ...filterOf({ ...asked(), ...filter, state: "dead" }) })) !== undefined && found.refresh();

  function search(event) {
    event.preventDefault();
    const { state, ...rest } = parse(new FormData(event.target).get("search").trim());
    setQuery(rest);
  }

  return {
    title: () => t("nav.dead"),
    picture: (live) => found.follow(JSON.stringify(live.queues.map((queue) => [queue.name, queue.dead]))),
    query: () => found.restart(),
    close: () => found.close(),
    render() {
      const groups = found.data;
      return html`${heading(t("nav.dead"), {
          sub: t("dead.sub"),
          acts: groups?.jobs ? acting(html`<button type="button" class="button" @click=${() => act("retry", {})}>${icon("retry")}${t("dead.retry-all", { n: groups.jobs })}…</button><button type="button" class="button bad" @click=${() => act("drop", {})}>${icon("drop")}${t("dead.drop-all")}…</button>`) : nothing,
        })}
        <form class="filters" role="search" @submit=${search}>
          <label class="search">${icon("search")}<span class="hidden">${t("dead.search")}</span><input name="search" type="search" autocomplete="off" spellcheck="false" data-search placeholder=${t("dead.search-hint")} .value=${current(document.activeElement?.dataset.search !== undefined ? document.activeElement.value : write(asked()))}><kbd aria-hidden="true">/</kbd></label>
          <button class="button" type="submit">${t("jobs.find")}</button>
          ${write(asked()) ? html`<button class="button plain" type="button" @click=${() => { document.activeElement?.blur(); setQuery({ queue: "", task: "", error: "", where: [] }); }}>${t("jobs.clear")}</button>` : nothing}
        </form>
        <section class="card">${shown(found, list)}</section>`;
    },
  };

  function list({ groups, jobs, scanned, complete }) {
    if (!groups.length) return write(asked()) ? empty("search", t("jobs.none-found"), t("jobs.none-found-text")) : empty("check", t("dead.none"), t("dead.none-text"));
    return html`${repeat(groups, (group) => group.key, row)}
      <footer><span>${t("dead.shown", { n: jobs, groups: groups.length })}</span>${complete ? nothing : html`<span>${t("jobs.scanned", { n: scanned })}</span>`}</footer>`;
  }

  function row(group) {
    const open = opened === group.key;
    const filter = { group: group.key, queue: group.queue };
    const toggle = () => {
      opened = open ? "" : group.key;
      update();
    };
    return html`<article class="group" aria-label=${group.error || t("dead.no-error")}>
      <span class="count">${whole(group.jobs)}</span>
      <div><p class="error">${group.error || t("dead.no-error")}</p>
        <p class="meta"><span class="mono">${group.task}</span>${queueLink(group.queue)}<span>${t("dead.newest")} ${when(group.newest_at)}</span>${group.jobs > 1 ? html`<span>${t("dead.oldest")} ${when(group.oldest_at)}</span>` : nothing}
          <button type="button" class="button small plain" aria-expanded=${open} @click=${toggle}>${t(open ? "dead.less" : "dead.more")}</button></p>
        ${open ? html`<ul class="sample">${group.sample.map((job) => html`<li>${jobLink(job.id)}<span class="clip dim">${job.key ? html`<b>${job.key}</b> ` : nothing}${firstLine(job.error)}</span>${when(job.ended_at)}</li>`)}
          ${group.jobs > group.sample.length ? html`<li><a href="/jobs?state=dead&queue=${encodeURIComponent(group.queue)}&task=${encodeURIComponent(group.task)}">${t("dead.rest", { n: group.jobs - group.sample.length })}</a></li>` : nothing}</ul>` : nothing}</div>
      <span class="acts">${acting(html`<button type="button" class="button small" aria-label="${t("bulk.retry")}: ${group.error}" @click=${() => act("retry", filter)}>${icon("retry")}${t("bulk.retry")}</button>
        <button type="button" class="button small bad" aria-label="${t("bulk.drop")}: ${group.error}" @click=${() => act("drop", filter)}>${icon("drop")}${t("bulk.drop")}</button>`)}</span>
    </article>`;
  }
}

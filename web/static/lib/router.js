// Addresses of the page: every view, filter and job has one, so that it can be sent to somebody.
const routes = [];
let changed = () => {};

export function route(pattern, make) {
  const names = [];
  const text = pattern.replace(/\{(\w+)\}/g, (_, name) => (names.push(name), "([^/]+)"));
  routes.push({ match: new RegExp(`^${text}$`), names, make, pattern });
}

export function find(path) {
  for (const { match, names, make, pattern } of routes) {
    const found = path.match(match);
    if (found) {
      const params = Object.fromEntries(names.map((name, index) => [name, decode(found[index + 1])]));
      return { make, params, pattern };
    }
  }
  return null;
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function go(path, { replace = false } = {}) {
  if (path === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", path);
  changed({ scroll: !replace });
}

// The same address with other parameters; an empty one is left out. Typing in a filter makes no history.
export function setQuery(values) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    query.delete(name);
    for (const one of [value].flat()) if (one) query.append(name, one);
  }
  const text = query.toString();
  go(location.pathname + (text ? `?${text}` : ""), { replace: true });
}

export function listen(fn) {
  changed = fn;
  window.addEventListener("popstate", () => fn({ scroll: false }));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const there = new URL(link.href);
    if (there.origin !== location.origin || link.target || link.hasAttribute("download") || !find(there.pathname)) return;
    if (there.hash && there.pathname === location.pathname) return;
    event.preventDefault();
    go(there.pathname + there.search);
  });
}

// What is typed into the search of the jobs: `queue:video_merge task:*merge* error:"disk full" exam_id=49`. Pure.
const TOKEN = /(?:[^\s"]+|"[^"]*")+/g;
const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;
const NAMES = ["queue", "task", "error", "state"];

export const isId = (text) => UUID.test(text.trim());

const bare = (text) => text.replaceAll('"', "");

export function parse(text) {
  const found = { queue: "", task: "", error: "", where: [] };
  for (const token of text.match(TOKEN) ?? []) {
    const named = token.match(/^(\w+):(.*)$/s);
    if (named && NAMES.includes(named[1])) found[named[1]] = bare(named[2]);
    else if (/^[^=]+=/.test(token)) found.where.push(bare(token));
    else found.task = /[*?]/.test(token) || token.includes(".") ? bare(token) : `*${bare(token)}*`;
  }
  return found;
}

const quoted = (text) => (/\s/.test(text) ? `"${text}"` : text);

export function write({ queue, task, error, where }) {
  const parts = [];
  if (queue) parts.push(`queue:${quoted(queue)}`);
  if (task) parts.push(`task:${quoted(task)}`);
  if (error) parts.push(`error:${quoted(error)}`);
  return [...parts, ...where.map(quoted)].join(" ");
}

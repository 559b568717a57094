// The page in the reader's language. The server has chosen by Accept-Language or by the cookie that a switch sets.
import { en } from "../i18n/en.js";
import { zh } from "../i18n/zh.js";

export const LANGUAGES = { en, zh };
export let language = document.documentElement.lang.startsWith("zh") ? "zh" : "en";

const YEAR_S = 31536000;

export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  document.cookie = `zq_language=${name}; path=/; max-age=${YEAR_S}; samesite=strict`;
}

export const locale = () => (language === "zh" ? "zh-CN" : "en-GB");

// A text may have two forms, "one job|{n} jobs": the first is for n = 1.
export function t(key, values = {}) {
  let text = LANGUAGES[language][key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  if (text.includes("|")) text = text.split("|")[values.n === 1 ? 0 : 1];
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? values[name].toLocaleString(locale()) : String(values[name] ?? "")));
}

t.maybe = (key, values) => (LANGUAGES[language][key] === undefined ? "" : t(key, values));

export const theme = () => document.documentElement.dataset.theme;

export function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.cookie = `zq_theme=${name}; path=/; max-age=${name === "auto" ? 0 : YEAR_S}; samesite=strict`;
}

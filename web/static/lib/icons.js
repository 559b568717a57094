import { html, svg } from "./lit.js";

const PATHS = {
  overview: svg`<path d="M3 12.5 7 8l4 3.5L17 5"/><path d="M3 17h14"/>`,
  queues: svg`<rect x="3" y="3.5" width="14" height="3.6" rx="1"/><rect x="3" y="8.7" width="14" height="3.6" rx="1"/><path d="M3.5 15.5h8"/>`,
  jobs: svg`<path d="M4 5.5h.01M4 10h.01M4 14.5h.01M7.5 5.5H17M7.5 10H17M7.5 14.5H17"/>`,
  dead: svg`<path d="M10 3 2.8 16h14.4L10 3Z"/><path d="M10 8v3.6M10 13.8h.01"/>`,
  schedules: svg`<circle cx="10" cy="10" r="7"/><path d="M10 6v4.2l2.8 1.8"/>`,
  workers: svg`<rect x="3" y="3.5" width="14" height="5.2" rx="1.2"/><rect x="3" y="11.3" width="14" height="5.2" rx="1.2"/><path d="M6 6.1h.01M6 13.9h.01M9.5 6.1h4.5M9.5 13.9h4.5"/>`,
  exams: svg`<path d="M10 4 2 7.8l8 3.8 8-3.8L10 4Z"/><path d="M5 9.6v4.1c2.8 2.4 7.2 2.4 10 0V9.6"/>`,
  more: svg`<path d="M5 10h.01M10 10h.01M15 10h.01"/>`,
  copy: svg`<rect x="7" y="7" width="9.5" height="9.5" rx="1.8"/><path d="M13 4.5A1.5 1.5 0 0 0 11.5 3.500h-6.500A1.5 1.5 0 0 0 3.5 5v6.500A1.5 1.5 0 0 0 4.6 13"/>`,
  check: svg`<path d="m4.5 10.5 3.7 3.700L15.5 6.5"/>`,
  search: svg`<circle cx="8.8" cy="8.8" r="5"/><path d="m12.6 12.6 4 4"/>`,
  pause: svg`<path d="M7 5v10M13 5v10"/>`,
  play: svg`<path d="M6.5 4.500v11l9-5.5-9-5.500Z"/>`,
  retry: svg`<path d="M15.8 8.200A6.2 6.2 0 1 0 16.2 11"/><path d="M16.3 4.500v4h-4"/>`,
  drop: svg`<path d="M4 6h12M8 6V4h4v2M5.5 6l.700 10h7.600l.700-10"/>`,
  stop: svg`<circle cx="10" cy="10" r="7"/><path d="m7.5 7.5 5 5M12.5 7.500l-5 5"/>`,
  lock: svg`<rect x="4.5" y="9" width="11" height="7.5" rx="1.6"/><path d="M7 9V6.500a3 3 0 0 1 6 0V9"/>`,
  sliders: svg`<path d="M3 6h8M15 6h2M3 14h2M9 14h8"/><circle cx="13" cy="6" r="1.9"/><circle cx="7" cy="14" r="1.9"/>`,
  video: svg`<rect x="2.5" y="5" width="10.5" height="10" rx="1.8"/><path d="m13 9 4.5-2.500v7L13 11"/>`,
  back: svg`<path d="M12 4.5 6.5 10l5.5 5.5"/>`,
  sun: svg`<circle cx="10" cy="10" r="3.2"/><path d="M10 2.500v1.600M10 15.900v1.600M2.5 10h1.600M15.9 10h1.600M4.7 4.700l1.1 1.100M14.2 14.200l1.1 1.100M4.7 15.300l1.1-1.100M14.2 5.800l1.1-1.1"/>`,
  language: svg`<circle cx="10" cy="10" r="7"/><path d="M3 10h14M10 3c-4.5 4.4-4.5 9.6 0 14 4.5-4.4 4.5-9.6 0-14Z"/>`,
};

export const icon = (name) => html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true">${PATHS[name]}</svg>`;

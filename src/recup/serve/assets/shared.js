// What the pages share.  Everything that comes from a run is set as text, never as HTML.

export function byId(id) { return document.getElementById(id); }

/** An element with properties and children; texts become text nodes. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : shown(child))));
  return made;
}

/** Text in which what cannot be seen is shown as its code, so that no name can pass for another. */
export function shown(value) {
  return value === null || value === undefined ? "" :
    String(value).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
}

export function cell(text, kind = "") { return make("td", { className: kind }, text); }

export function fillRows(table, rows) { table.tBodies[0].replaceChildren(...rows); }

export async function ask(address) {
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  const text = await answer.text();
  if (!answer.ok) throw Object.assign(new Error(text.replace(/^\d+: /, "").trim()), { status: answer.status });
  return JSON.parse(text);
}

export function count(value) { return value === null || value === undefined ? "" : Math.round(value).toLocaleString("en"); }

export function plural(value, noun) { return `${count(value)} ${noun}${value === 1 ? "" : "s"}`; }

export function bytes(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  let amount = value, unit = "B";
  for (const larger of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    if (Math.abs(amount) < 1023.95) break;
    amount /= 1024; unit = larger;
  }
  return unit === "B" ? `${Math.round(amount)} B` : `${amount.toFixed(1)} ${unit}`;
}

export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (value === 0) return "0 s";
  if (value < 0.0009995) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.9995) return `${Number((value * 1e3).toPrecision(3))} ms`;
  if (value < 9.995) return `${value.toFixed(2)} s`;
  if (value < 99.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value), two = (n) => String(n).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
  return `${Math.floor(whole / 86400)} d ${two(Math.floor(whole / 3600) % 24)} h`;
}

const DATE = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export function dateTime(ns) { const at = new Date(ns / 1e6); return `${DATE.format(at)}, ${TIME.format(at)}`; }
export function clockTime(ns) { return TIME.format(new Date(ns / 1e6)); }

export function stateBadge(state, badge = make("span")) {
  const kind = state === "running" ? " live" : state === "unknown" ? " warn" :
    /^(signal|exit|unreadable)/.test(state) ? " bad" : "";
  badge.className = "state" + kind;
  badge.textContent = state === "unknown" ? "no sign of life" : state === "ended 0" ? "ended" : shown(state);
  return badge;
}

/** A command line as a line; of Python its name alone. */
export function commandText(command, isShort) {
  if (!Array.isArray(command)) return command ?? "";
  const [first = "", ...rest] = command.map(String);
  return [isShort && /(^|\/)python[0-9.]*$/.test(first) ? first.split("/").at(-1) : first, ...rest].join(" ");
}

export function note(text, kind = "") {
  const place = byId("note");
  place.hidden = !text;
  place.className = "note" + kind;
  if (place.textContent !== text) place.textContent = text;
}

/** Call again and again while the page is seen: `each` returns the pause before the next in ms, or null to end. */
export function repeat(each) {
  let timer = null, busy = false, ended = false;
  async function turn() {
    timer = null;
    if (busy || ended || document.hidden) return;
    busy = true;
    let pause = null;
    try { pause = await each(); } finally { busy = false; }
    if (pause === null) ended = true;
    else if (!document.hidden) timer = setTimeout(turn, pause);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === null) turn(); });
  turn();
}

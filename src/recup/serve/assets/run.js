import { ask, bytes, byId, count, make, note, repeat, seconds, shown } from "./shared.js";

const isComparison = location.pathname === "/compare";
const api = isComparison ? "/api/compare/report" : "/api" + location.pathname + "/report";
const names = isComparison ? new URLSearchParams(location.search).getAll("run") :
  [decodeURIComponent(location.pathname.split("/")[2])];
const query = isComparison ? "?" + names.map((name) => "run=" + encodeURIComponent(name)).join("&") : "";
const subject = isComparison ? "comparison" : "report";

byId("title").textContent = names.map(shown).join("  against  ");
document.title = `${names.map(shown).join(" · ")} · recup`;
if (!isComparison) {
  const live = byId("live");
  live.href = location.pathname + "/live";
  ask("/api/runs").then((listing) => { live.hidden = listing.runs.find((run) => run.name === names[0])?.state !== "running"; }, () => {});
}

function valueText(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    return name.endsWith("_bytes") ? bytes(value) : name.endsWith("_s") ? seconds(value) :
      name.endsWith("_ns") ? new Date(value / 1e6).toLocaleString() : count(value);
  }
  return shown(Array.isArray(value) ? value.join(" ") : value);
}

function isPlain(value) { return value === null || typeof value !== "object" || (Array.isArray(value) && value.every((each) => typeof each !== "object")); }

/** Plain facts as a list, lists of rows as tables, and what holds others under its heading. */
function parts(title, value) {
  if (Array.isArray(value)) {
    if (!value.length) return [];
    const columns = Object.keys(value[0]).filter((name) => value.some((row) => row[name] !== null && isPlain(row[name])));
    const heads = make("tr", {}, ...columns.map((name) => make("th", {}, name.replace(/_(s|bytes|count|ns)$/, "").replaceAll("_", " "))));
    const rows = value.slice(0, 50).map((row) => make("tr", {}, ...columns.map((name) =>
      make("td", { className: typeof row[name] === "number" ? "number" : "" }, valueText(name, row[name])))));
    return [make("h2", {}, title), make("div", { className: "wide" }, make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows)))];
  }
  const facts = Object.entries(value).filter(([, each]) => each !== null && isPlain(each) && !(Array.isArray(each) && !each.length));
  const list = make("dl", {}, ...facts.flatMap(([name, each]) =>
    [make("dt", {}, name.replace(/_(s|bytes|count|ns)$/, "").replaceAll("_", " ")), make("dd", {}, valueText(name, each))]));
  const inner = Object.entries(value).filter(([, each]) => !isPlain(each)).flatMap(([name, each]) => parts(name.replaceAll("_", " "), each));
  return [...(facts.length ? [make("h2", {}, title), list] : []), ...inner];
}

async function showOverview() {
  if (isComparison) return;
  for (;;) {
    const told = await ask("/api" + location.pathname + "/overview");
    if (told.state === "failed") return;
    if (told.state === "ready") break;
    await new Promise((done) => setTimeout(done, 300));
  }
  const overview = await ask("/api" + location.pathname + "/overview.json");
  byId("overview").replaceChildren(...Object.entries(overview).flatMap(([name, value]) => (value === null || isPlain(value) ? [] : parts(name.replaceAll("_", " "), value))));
  byId("overview").hidden = false;
}

function showReport() {
  const address = api + ".html" + query;
  const frame = make("iframe", { src: address, title: `The ${subject}` });
  frame.setAttribute("sandbox", "allow-scripts allow-downloads allow-modals");
  byId("meanwhile").replaceWith(frame);
  document.body.classList.add("ready");
  const alone = byId("alone");
  alone.href = address;
  alone.hidden = false;
  alone.textContent = isComparison ? "Comparison alone" : "Report alone";
  frame.focus();
}

repeat(async () => {
  try {
    const told = await ask(api + query);
    if (told.state === "ready") { showReport(); return null; }
    if (told.state === "failed") {
      note(`The ${subject} could not be made: ${shown(told.problem)}`);
      await showOverview();
      return null;
    }
    note(`Making the ${subject} …` + (told.taken_s > 1.5 ? ` ${seconds(Math.round(told.taken_s))}` : ""), " waiting");
    return 300;
  } catch (reason) {
    note(reason.status ? reason.message : "The server does not answer. Is recup serve still running?");
    return reason.status ? null : 3000;
  }
});

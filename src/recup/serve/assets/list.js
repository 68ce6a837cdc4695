import { ask, byId, bytes, cell, commandText, count, dateTime, fillRows, make, note, plural, repeat, seconds, shown, stateBadge } from "./shared.js";

const ticked = new Set();
let runs = [], version = "", drawn = "";

function row(run) {
  const tick = make("input", { type: "checkbox", checked: ticked.has(run.name), disabled: !run.address || Boolean(run.problem) });
  tick.setAttribute("aria-label", `Compare ${shown(run.name)}`);
  tick.addEventListener("change", () => { ticked[tick.checked ? "add" : "delete"](run.name); tray(); });
  const started = run.started_ns ? dateTime(run.started_ns) : run.name;
  const address = run.state === "running" ? `${run.address}/live` : run.address;
  const name = run.address && !run.problem ? make("a", { href: address }, started) : started;
  const told = run.problem ? cell(run.problem, "problem") : make("td", { className: "command", title: shown(commandText(run.command)) }, commandText(run.command, true));
  const live = run.state === "running" ? make("a", { href: address }, stateBadge(run.state)) : stateBadge(run.state ?? "unknown");
  if (run.state === "running") live.firstChild.textContent = "live";
  return make("tr", {},
    make("td", { className: "tick" }, tick), make("td", {}, name, make("small", { className: "path" }, run.name)), make("td", {}, live),
    cell(seconds(run.wall_s), "number"), cell(count(run.task_count), "number"), cell(run.worker_count ? count(run.worker_count) : "", "number"),
    cell(bytes(run.size_bytes), "number"), told);
}

function draw() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const seen = runs.filter((run) => {
    const text = `${run.name} ${run.state} ${run.state === "running" ? "live" : ""} ${commandText(run.command)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const state = JSON.stringify([version, words]);
  if (state === drawn) return;
  const focused = document.activeElement?.getAttribute("aria-label");
  fillRows(byId("runs"), seen.map(row));
  if (focused) document.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
  drawn = state;
  byId("count").textContent = words.length ? `${count(seen.length)} of ${plural(runs.length, "run")}` : plural(runs.length, "run");
  tray();
}

function tray() {
  const names = [...ticked].filter((name) => runs.some((run) => run.name === name));
  byId("compare").hidden = names.length === 0;
  byId("ticked").textContent = names.length === 1 ? "1 run ticked; tick another to compare" :
    names.length === 2 ? "2 runs ticked" : `${names.length} runs ticked: here two are compared, groups by recup compare A B --with C D`;
  const go = byId("go");
  go.hidden = names.length !== 2;
  go.href = "/compare?" + names.sort().map((name) => "run=" + encodeURIComponent(name)).join("&");
}

byId("find").addEventListener("input", draw);
byId("clear").addEventListener("click", () => { ticked.clear(); drawn = ""; draw(); });

repeat(async () => {
  try {
    const listing = await ask(`/api/runs?version=${version}`);
    if (listing.runs) { runs = listing.runs; version = listing.version; }
    byId("root").textContent = shown(listing.root);
    byId("none").hidden = runs.length > 0 || !listing.is_complete;
    byId("runs").hidden = runs.length === 0;
    note(listing.is_complete ? "" : "Reading the list of runs …", " waiting");
    draw();
    return listing.is_complete ? 1500 : 400;
  } catch (reason) {
    note(reason.status ? reason.message : "The server does not answer. Is recup serve still running?");
    return 3000;
  }
});

import { areas, colour, lanes, strip, theme } from "./charts.js";
import { ask, byId, bytes, cell, clockTime, commandText, count, fillRows, make, note, plural, repeat, seconds, shown, stateBadge } from "./shared.js";

const address = "/api" + location.pathname;
const runAddress = location.pathname.replace(/\/live$/, "");
const STATES = [["released", "done and let go"], ["memory", "done, result held"], ["erred", "failed"], ["processing", "running or assigned"], ["waiting", "waiting"]];
const bars = new Map();
let follow = "", since = -1, chosen = null, latest = null, find = () => undefined, received = 0;

byId("report").href = runAddress;
byId("states").replaceChildren(...STATES.map(([state, words]) => make("li", {}, make("i", { className: `${state}-fill` }), words)));
byId("all").addEventListener("click", () => choose(null));

function choose(code) { chosen = chosen === code ? null : code; turn(); }

function take(document_) {
  const { lanes: sent } = document_;
  if (sent.follow !== follow) { bars.clear(); follow = sent.follow; }
  since = sent.last;
  for (const [, worker, lane, start, stop, prefix, failed, number] of sent.bars) {
    // One that has grown begins where it did.
    bars.set(`${worker} ${lane} ${start}`, { worker, lane, start, stop, prefix, failed, number });
  }
  for (const [key, bar] of bars) if (bar.stop < document_.now_s - sent.window_s - 2) bars.delete(key);
  latest = document_;
  received = performance.now();
}

function noteText(run) {
  if (run.is_running && run.read_share < 0.999) return [`Reading what was recorded so far: ${Math.floor(run.read_share * 100)} %`, " waiting"];
  const lines = [];
  if (run.state === "unknown") lines.push(`No sign of life since ${clockTime(run.last_sign_ns)}: it was killed, or nothing reaches this directory any more.`);
  else if (!run.is_running) lines.push(`The run is over (${shown(run.state)}). ` + (run.has_rows ? "What is shown is its end; the report tells the rest." : "Its report tells what it did."));
  else if (!run.has_rows) lines.push("Nothing has been written yet. Rows reach this page about a second after they happen.");
  for (const each of run.silent.slice(0, 4)) {
    if (run.is_running) lines.push(`The ${each.role} ${shown(each.server_id)} gives no sign of life since ${each.last_sign_ns ? clockTime(each.last_sign_ns) : "it began"}.`);
  }
  for (const problem of run.problems) lines.push(shown(problem));
  return [lines.join("\n"), run.state === "unknown" || run.problems.length || run.silent.length ? "" : " waiting"];
}

function last(values) { return values.findLast((value) => value !== null) ?? null; }

function tile(value, words, bad = false) { return make("div", { className: bad ? "tile bad" : "tile" }, make("b", {}, value), make("span", {}, words)); }

function drawTiles(run) {
  const { tasks } = run, done = tasks.memory + tasks.released, waiting = tasks.waiting + tasks.queued + tasks["no-worker"];
  const executing = run.workers.reduce((sum, worker) => sum + worker.executing, 0);
  const lost = run.losses.length;
  byId("tiles").replaceChildren(
    tile(tasks.total ? `${Math.floor((100 * done) / tasks.total)} %` : "–", `${count(done)} of ${plural(tasks.total, "task")} done`),
    tile(count(executing), `executing on ${plural(run.thread_count, "thread")}`),
    tile(count(waiting), tasks["no-worker"] ? `waiting, ${count(tasks["no-worker"])} for a worker` : tasks.queued ? `waiting, ${count(tasks.queued)} queued` : "waiting"),
    tile(count(tasks.erred), "failed", tasks.erred > 0),
    tile(count(run.worker_count), run.worker_count === 1 ? "worker" : "workers"),
    tile(lost ? count(lost) : "none", lost === 1 ? "kind of loss" : lost ? "kinds of loss" : "known losses", lost > 0));
}

function stack(row) {
  const parts = { ...row, waiting: row.waiting + row.queued + row["no-worker"] };
  return make("div", { className: "stack" }, ...STATES.filter(([state]) => parts[state] > 0).map(([state, words]) => {
    const part = make("div", { className: `fill ${state}-fill`, title: `${count(parts[state])} ${words}` });
    part.style.flex = String(parts[state]);
    return part;
  }));
}

const SHOWN_PREFIXES = 12;
function drawPrefixes(run) {
  const focused = document.activeElement?.dataset?.prefix;
  fillRows(byId("prefixes"), run.prefixes.slice(0, SHOWN_PREFIXES).map((row) => {
    const name = make("button", { type: "button" }, row.prefix);
    name.dataset.prefix = row.code;
    name.setAttribute("aria-pressed", String(chosen === row.code));
    const made = make("tr", { className: chosen === row.code ? "choice chosen" : "choice" },
      make("td", { className: "path" }, name), make("td", {}, stack(row)), cell(count(row.waiting + row.queued + row["no-worker"]), "number"), cell(count(row.processing), "number"),
      cell(count(row.memory + row.released), "number"), cell(row.erred ? count(row.erred) : "", "number"), cell(count(row.total), "number"));
    made.addEventListener("click", () => choose(row.code));
    return made;
  }));
  if (focused) document.querySelector(`button[data-prefix="${Number(focused)}"]`)?.focus();
  const more = run.prefixes.length - SHOWN_PREFIXES;
  byId("more").hidden = more <= 0;
  byId("more").textContent = `and ${more} more with fewer tasks`;
  byId("chosen").textContent = chosen === null ? "all prefixes" : shown(run.prefix_names[chosen]);
  byId("all").hidden = chosen === null;
}

function drawOver(run) {
  const { states, step_s: step } = run.over_time, duration = run.now_s;
  const waiting = states.waiting.map((value, i) => value + states.queued[i] + states["no-worker"][i]);
  const parts = STATES.map(([state]) => ({ values: state === "waiting" ? waiting : states[state], colour: theme(state) }));
  areas(byId("over"), 190, { parts, step, duration, text: count, time: seconds });
  const line = (id, values, text, base) => {
    strip(byId(id + "over"), 90, { values, step, duration, text, time: seconds, base, colour: theme("memory") });
    byId(id).textContent = values.length ? text(last(values)) : "";
  };
  line("occupancy", run.over_time.occupancy_s, seconds);
  line("memory", run.over_time.memory_bytes, bytes, 2);
  line("lag", run.over_time.lag_s, seconds);
}

function drawLanes() {
  const run = latest, { lanes: sent } = run;
  const now = run.is_running ? run.now_s + (performance.now() - received) / 1000 : run.now_s;
  const span = Math.min(sent.window_s, Math.max(10, now));
  const open = sent.running.map(([worker, lane, start, prefix, key]) => ({ worker, lane, start, stop: now, prefix, key, failed: 0, number: 1 }));
  const workers = sent.workers.map((worker) => ({ ...worker, label: shown(worker.name) }));
  find = lanes(byId("lanes"), { workers, bars: bars.values(), running: open, now, span, time: seconds, end: run.is_running ? "now" : "end" });
  return now;
}

function drawNow(run, now) {
  const { lanes: sent } = run, names = new Map(sent.workers.map((worker) => [worker.number, worker.name]));
  byId("nowcount").textContent = run.is_running ? count(sent.running.length) : `${count(sent.running.length)} when the record ended`;
  const rows = [...sent.running].sort((a, b) => a[2] - b[2]).slice(0, 40);
  fillRows(byId("now"), rows.map(([worker, , start, prefix, key]) => make("tr", {},
    cell(key ?? run.prefix_names[prefix] ?? "", "key"), cell(names.get(worker) ?? "", "path"), cell(seconds(Math.max(0, now - start)), "number"))));
  const seen = [...new Set([...bars.values(), ...sent.running.map((each) => ({ prefix: each[3] }))].map((bar) => bar.prefix))].sort((a, b) => a - b);
  byId("colours").replaceChildren(...seen.slice(0, 11).map((prefix) => {
    const box = make("i");
    box.style.background = `var(--${colour(prefix)})`;
    return make("li", {}, box, run.prefix_names[prefix] ?? "unknown");
  }), ...(seen.length > 11 ? [make("li", {}, `and ${seen.length - 11} more; colours repeat`)] : []));
  byId("lanesnote").hidden = sent.left_off === 0;
  byId("lanesnote").textContent = `${plural(sent.left_off, "more worker")} without room here`;
}

function gauge(worker) {
  const text = bytes(worker.memory_bytes), limit = worker.memory_limit_bytes;
  if (!limit || worker.gone_s !== null || worker.memory_bytes === null) return cell(worker.gone_s === null ? text : "", "number");
  const fill = make("div", { className: worker.memory_bytes > 0.8 * limit ? "fill erred-fill" : worker.memory_bytes > 0.6 * limit ? "fill processing-fill" : "fill memory-fill" });
  fill.style.width = `${Math.min(100, (100 * worker.memory_bytes) / limit)}%`;
  return make("td", {}, make("div", { className: "gauge" }, make("div", { className: "stack" }, fill), make("span", { className: "number" }, `${text} of ${bytes(limit)}`)));
}

function drawTables(run) {
  fillRows(byId("workers"), run.workers.map((worker) => {
    const gone = worker.gone_s !== null;
    const state = gone ? `gone at ${seconds(worker.gone_s)}${worker.ended ? `: ${worker.ended}` : ""}` : worker.is_captured ? "" : "not recorded itself";
    return make("tr", { className: gone ? "gone" : "" },
      make("td", { className: "path" }, worker.name, ...(worker.address && worker.address !== worker.name ? [make("small", {}, worker.address)] : [])),
      cell(count(worker.threads), "number"), cell(gone ? "" : count(worker.executing), "number"), cell(gone ? "" : count(worker.processing), "number"),
      cell(gone ? "" : seconds(worker.occupancy_s), "number"), gauge(worker), cell(gone || !worker.spilled_bytes ? "" : bytes(worker.spilled_bytes), "number"),
      cell(gone ? "" : seconds(worker.lag_s), "number"), cell(state));
  }));
  byId("workercount").textContent = run.worker_left_off ? `${plural(run.worker_left_off, "more")} not shown` : "";
  byId("failuresbox").hidden = run.error_count === 0;
  fillRows(byId("failures"), run.errors.map((error) => make("tr", {},
    cell(seconds(error.at_s), "number"), cell(error.key, "key"), cell(error.exception, "key"), cell(error.worker, "path"))));
  byId("nolosses").hidden = run.losses.length > 0;
  byId("losses").hidden = run.losses.length === 0;
  fillRows(byId("losses"), run.losses.map((loss) => make("tr", {},
    cell(loss.kind.replaceAll("_", " ")), cell(loss.table), cell(loss.row_count === null ? "not countable" : count(loss.row_count), "number"), cell(loss.at, "path"), cell(loss.detail, "path"))));
}

function draw(run) {
  byId("title").textContent = shown(run.run_id);
  document.title = `${run.is_running ? "● " : ""}${shown(run.run_id)} · recup`;
  stateBadge(run.state, byId("state"));
  if (run.is_running) byId("state").textContent = "live";
  byId("clock").textContent = seconds(Math.max(0, run.now_s));
  byId("command").textContent = shown(commandText(run.command, true));
  byId("report").textContent = run.is_running ? "Report so far" : "Open the report";
  note(...noteText(run));
  drawTiles(run); drawPrefixes(run); drawOver(run);
  drawNow(run, drawLanes()); drawTables(run);
}

async function turn() {
  const asked = new URLSearchParams({ since, follow });
  if (chosen !== null) asked.set("prefix", chosen);
  take(await ask(`${address}?${asked}`));
  draw(latest);
}

repeat(async () => {
  try {
    await turn();
    return latest.is_running ? (latest.read_share < 0.999 ? 100 : 500) : 3000;
  } catch (reason) {
    if (reason.status === 404) { note("The run is no longer here."); return null; }
    if (!reason.status && !(reason instanceof TypeError)) throw reason;
    note(reason.status ? reason.message : "The server does not answer. Is recup serve still running?");
    return 3000;
  }
});

// Between answers time goes on: lanes are drawn again, cheaply and only while they are seen.
setInterval(() => { if (latest?.is_running && !document.hidden && performance.now() - received < 3000) drawLanes(); }, 125);
addEventListener("resize", () => { if (latest) draw(latest); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (latest) draw(latest); });

byId("lanes").addEventListener("mousemove", (event) => {
  const box = byId("lanes").getBoundingClientRect(), found = find(event.clientX - box.left, event.clientY - box.top), tip = byId("tip");
  tip.hidden = !found;
  if (!found) return;
  const [, , , , bar, isOpen] = found, prefix = latest.prefix_names[bar.prefix] ?? "unknown prefix", took = seconds(bar.stop - bar.start);
  tip.textContent = isOpen ? `${shown(bar.key ?? prefix)}\nrunning for ${took}` :
    `${shown(prefix)}${bar.number > 1 ? `, ${bar.number} tasks` : ""}${bar.failed ? `, ${bar.failed} failed` : ""}\n${took}, began at ${seconds(bar.start)}`;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - 300)}px`;
  tip.style.top = `${event.clientY + 14}px`;
});
byId("lanes").addEventListener("mouseleave", () => { byId("tip").hidden = true; });

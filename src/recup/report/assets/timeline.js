/* The time line: tasks per worker thread on canvas, strips below it, one axis of time for all.

   Reads the columns that recup/report/timeline.py packs.  Text of a run only ever becomes
   textContent, a title of an input, or canvas text.  window.recupTimelines holds one object
   per run shown; window.recupTimeline is the first. */
"use strict";

const Recup = window.Recup = window.Recup || {};

/* ------------------------------------------------------------------ formats */

Recup.seconds = function (value, digits) {
  if (value === null || value === undefined || !isFinite(value)) return "";
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 0.9995e-3) return (value * 1e6).toFixed(0) + " µs";
  if (size < 0.9995) return Number((value * 1e3).toPrecision(digits || 3)) + " ms";
  if (size < 99.95) return Number(value.toPrecision(digits || 3)) + " s";
  const whole = Math.round(size), sign = value < 0 ? "-" : "";
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 3600) return sign + Math.floor(whole / 60) + " min " + two(whole % 60) + " s";
  return sign + Math.floor(whole / 3600) + " h " + two(Math.floor(whole % 3600 / 60)) + " min";
};

Recup.bytes = function (value) {
  if (value === null || value === undefined || !isFinite(value)) return "";
  let amount = value, unit = "B";
  for (const larger of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    if (Math.abs(amount) < 1023.95) break;
    amount /= 1024; unit = larger;
  }
  return unit === "B" ? Math.round(amount) + " B" : amount.toFixed(1) + " " + unit;
};

Recup.count = (value) => Math.round(value).toLocaleString("en-US");
Recup.plural = (count, noun) => Recup.count(count) + " " + noun + (count === 1 ? "" : noun.endsWith("ch") ? "es" : "s");

/* Moments on the axis: as many digits as the stretch shown needs. */
Recup.moment = function (value, step) {
  if (step >= 60 && value >= 60) {
    const minutes = Math.floor(value / 60 + 1e-9), rest = Math.round(value - 60 * minutes);
    return minutes + ":" + String(rest).padStart(2, "0") + " min";
  }
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  return value.toFixed(digits) + " s";
};

Recup.element = function (name, classes, text) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
};

Recup.data = function (id) {
  const place = document.getElementById(id);
  return place === null ? null : JSON.parse(place.textContent);
};

Recup.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

/* ------------------------------------------------------------------ reading columns */

function bytesOf(id) {
  const text = document.getElementById(id).textContent.trim();
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function unzipped(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function fromPlanes(bytes, offset, width, count) {
  const kind = width === 1 ? Uint8Array : width === 2 ? Uint16Array : Uint32Array;
  const values = new kind(count);
  if (width === 1) { values.set(bytes.subarray(offset, offset + count)); return values; }
  for (let plane = 0; plane < width; plane++) {
    const from = offset + plane * count, factor = 2 ** (8 * plane);
    for (let i = 0; i < count; i++) values[i] += bytes[from + i] * factor;
  }
  return values;
}

async function columnsOf(about, bytes) {
  const names = Object.keys(about.columns), found = {};
  await Promise.all(names.map(async (name) => {
    const how = about.columns[name];
    const raw = await unzipped(bytes.subarray(how.offset, how.offset + how.length));
    if (how.coding === "json") found[name] = JSON.parse(new TextDecoder().decode(raw));
    else if (how.coding === "bytes") found[name] = raw;
    else if (how.coding === "folded") {
      const count = raw.length / (how.width + how.high_width);
      const low = fromPlanes(raw, 0, how.width, count);
      const high = fromPlanes(raw, how.width * count, how.high_width, count);
      const values = new Float64Array(count);
      for (let i = 0; i < count; i++) {
        const folded = low[i] + high[i] * 16777216;
        values[i] = folded % 2 ? -(folded + 1) / 2 : folded / 2;
      }
      found[name] = values;
    } else {
      const count = raw.length / how.width, values = fromPlanes(raw, 0, how.width, count);
      if (how.coding === "delta") {
        const numbers = new Uint32Array(count);
        for (let i = 0, last = 0; i < count; i++) {
          const folded = values[i];
          last += folded % 2 ? -(folded + 1) / 2 : folded / 2;
          numbers[i] = last;
        }
        found[name] = numbers;
      } else found[name] = values;
    }
  }));
  return found;
}

/* Tasks of one run as arrays; `firsts` says where the tasks of each lane begin. */
class Tasks {
  constructor(about, columns) {
    const count = columns.gap.length;
    this.about = about;
    this.columns = columns;
    this.count = count;
    this.groups = columns.groups;
    this.colours = about.prefixes.map((each, number) => Math.min(each.colour === undefined ? number : each.colour, COLOURS));
    this.firsts = new Uint32Array(about.counts.length + 1);
    about.counts.forEach((each, lane) => { this.firsts[lane + 1] = this.firsts[lane] + each; });
    this.start = new Float64Array(count);
    this.stop = new Float64Array(count);
    this.reach = new Float64Array(count);  // the latest stop so far: rises along a lane even where bars overlap
    this.prefix = new Uint16Array(count);
    this.lane = new Uint16Array(count);
    const { gap, mantissa, exponent, group } = columns, tick = about.tick_s;
    const groupPrefix = Uint16Array.from(this.groups, (each) => Math.min(each[0], 65535));
    for (let lane = 0; lane < about.counts.length; lane++) {
      let before = 0, reach = -Infinity;
      for (let i = this.firsts[lane]; i < this.firsts[lane + 1]; i++) {
        const start = before + gap[i];
        before = start + mantissa[i] * 2 ** exponent[i];
        this.start[i] = start * tick;
        this.stop[i] = before * tick;
        if (this.stop[i] > reach) reach = this.stop[i];
        this.reach[i] = reach;
        this.prefix[i] = groupPrefix[group[i]];
        this.lane[i] = lane;
      }
    }
    if (columns.has_token) {
      this.tokenPlace = new Uint32Array(count);
      for (let i = 0, place = 0; i < count; i++) { this.tokenPlace[i] = place; place += columns.has_token[i]; }
    }
    if (columns.templates) this.pieces = columns.templates.map((each) => each.split(/([\ue000-\ue003])/));
  }

  /* The key of a task as far as it is in the file. */
  key(i) {
    const columns = this.columns, groupName = this.groups[columns.group[i]][1];
    if (!this.pieces) return groupName || this.prefixName(i);
    let text = "", number = 0;
    for (const piece of this.pieces[columns.template[i]]) {
      if (piece === "\ue000") text += groupName;
      else if (piece === "\ue001" || piece === "\ue002") text += this.token(i, piece === "\ue002");
      else if (piece === "\ue003") text += columns["number_" + number++][i];
      else text += piece;
    }
    return text;
  }

  token(i, isUuid) {
    const { token } = this.columns, width = this.about.columns.token.width;
    let text = "";
    const from = this.tokenPlace[i] * width;
    for (let b = from; b < from + width; b++) text += (token[b] < 16 ? "0" : "") + token[b].toString(16);
    if (width < 16) return text + "…";
    return isUuid ? text.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-") : text;
  }

  prefixName(i) { return this.about.prefixes[this.prefix[i]].name; }
  group(i) { return this.groups[this.columns.group[i]][1]; }
  outcome(i) { return this.about.outcomes[this.columns.outcome[i] & 127]; }
  isUnfinished(i) { return this.columns.outcome[i] >= 128; }

  /* Bytes of the result, as text; empty where there is none or it is not in the file. */
  size(i) {
    if (!this.columns.nbytes || !this.columns.nbytes[i]) return "";
    const size = 2 ** ((this.columns.nbytes[i] - 1) / 1024) - 1;
    return Recup.bytes(size < 2048 ? Math.round(size) : size);
  }

  /* The first task of a lane that stops after a moment. */
  firstAfter(lane, moment) {
    let low = this.firsts[lane], high = this.firsts[lane + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.reach[middle] > moment) high = middle; else low = middle + 1;
    }
    return low;
  }

  /* The task at a moment, or the nearest within `slack` seconds; -1: none. */
  at(lane, moment, slack) {
    let best = -1, distance = slack;
    for (let i = this.firstAfter(lane, moment - slack); i < this.firsts[lane + 1] && this.start[i] <= moment + slack; i++) {
      const away = moment < this.start[i] ? this.start[i] - moment : moment > this.stop[i] ? moment - this.stop[i] : 0;
      if (away < distance || (away === 0 && distance === 0) || (away === 0 && best < 0)) { best = i; distance = away; }
    }
    return best;
  }
}

/* ------------------------------------------------------------------ the axis of time */

class Axis {
  constructor(end) {
    this.end = end;
    this.from = 0;
    this.to = end;
    this.listeners = [];
    this.least = Math.min(1e-5, end / 10);
  }

  set(from, to) {
    const width = Math.max(this.least, Math.min(to - from, this.end));
    let begin = (from + to - width) / 2;
    begin = Math.max(0, Math.min(begin, this.end - width));
    this.from = begin;
    this.to = begin + width;
    for (const each of this.listeners) each();
  }

  zoom(factor, around) {
    const middle = around === undefined ? (this.from + this.to) / 2 : around;
    this.set(middle - (middle - this.from) * factor, middle + (this.to - middle) * factor);
  }

  pan(share) {
    const by = (this.to - this.from) * share;
    const from = Math.max(0, Math.min(this.from + by, this.end - (this.to - this.from)));
    this.set(from, from + this.to - this.from);
  }

  reset() { this.set(0, this.end); }
}

/* ------------------------------------------------------------------ drawing */

const GUTTER = 148, RIGHT = 14, AXIS_HEIGHT = 26, COLOURS = 11, STRIP_HEIGHT = 88;

class Timeline {
  constructor(root, about, axis) {
    this.root = root;
    this.about = about;
    this.axis = axis;
    this.view = axis;
    this.matches = null;
    this.matchList = [];
    this.matchAt = -1;
    this.prefixShown = -1;
    this.chosen = -1;
    this.name = root.dataset.timeline;
    this.tip = document.getElementById("tip");
    this.laneHeight = Math.max(4, Math.min(24, Math.floor(520 / Math.max(about.lanes.length, 1))));
    this.build();
    axis.listeners.push(() => this.later());
    this.ready = this.load();
  }

  async load() {
    if (typeof DecompressionStream === "undefined") {
      this.note.textContent = "This browser cannot unpack the time line: it has no DecompressionStream. Any browser of 2023 or later can.";
      return;
    }
    const columns = await columnsOf(this.about, bytesOf(this.name + "-data"));
    this.tasks = new Tasks(this.about, columns);
    this.bins = this.about.bins ? { ...this.about.bins, busy: columns.bin_busy, prefix: columns.bin_prefix } : null;
    this.draw();
    this.drawnMs = performance.now();
  }

  build() {
    const make = Recup.element;
    this.tools = make("div", "timeline-tools");
    const search = make("input");
    search.type = "search";
    search.placeholder = "Find a key or prefix";
    search.setAttribute("aria-label", "Find tasks by key or prefix");
    search.spellcheck = false;
    search.autocomplete = "off";
    this.search = search;
    this.found = make("output", "found");
    const button = (text, label, act) => {
      const made = make("button", "", text);
      made.type = "button";
      made.title = label;
      made.setAttribute("aria-label", label);
      made.addEventListener("click", act);
      return made;
    };
    this.previous = button("‹", "Previous match", () => this.step(-1));
    this.next = button("›", "Next match", () => this.step(1));
    this.previous.disabled = this.next.disabled = true;
    this.extent = make("output", "extent");
    const right = make("span", "group");
    right.append(
      this.extent,
      button("−", "Zoom out (key -)", () => this.axis.zoom(2)),
      button("+", "Zoom in (key +)", () => this.axis.zoom(0.5)),
      button("All", "Show the whole run (key 0)", () => this.axis.reset()),
    );
    const left = make("span", "group");
    left.append(search, this.previous, this.next, this.found);
    this.tools.append(left, right);
    this.legend = make("div", "legend");
    this.buildLegend();
    this.scroller = make("div", "lanes");
    this.scroller.tabIndex = 0;
    this.scroller.setAttribute("role", "group");
    this.scroller.setAttribute("aria-label",
      "Time line of tasks by worker thread. Keys: arrows move, plus and minus zoom, 0 shows all, Enter and Shift Enter step through matches.");
    this.canvas = make("canvas");
    this.filler = make("div", "filler");
    this.select = make("div", "selection");
    this.cross = make("div", "cross");
    this.scroller.append(this.canvas, this.filler);
    this.frame = make("div", "frame");
    this.frame.append(this.scroller, this.select, this.cross);
    this.note = make("p", "note");
    this.details = make("div", "details");
    this.details.setAttribute("aria-live", "polite");
    this.root.replaceChildren(this.tools, this.legend, this.frame, this.details, this.note);
    const lanes = Math.max(this.about.lanes.length, 1);
    this.height = Math.min(lanes * this.laneHeight, 560) + AXIS_HEIGHT;
    this.scroller.style.height = this.height + "px";
    this.filler.style.height = Math.max(0, lanes * this.laneHeight + AXIS_HEIGHT - this.height) + "px";
    this.canvas.style.height = this.height + "px";
    this.listen();
  }

  buildLegend() {
    const rows = this.about.prefixes, colour = (row, number) => row.colour === undefined ? number : row.colour;
    let left = 0;
    rows.forEach((row, number) => {
      if (colour(row, number) >= COLOURS) { left += 1; return; }
      const made = Recup.element("button", "key");
      made.type = "button";
      made.dataset.number = number;
      made.setAttribute("aria-pressed", "false");
      made.title = row.name + ": " + Recup.plural(row.count, "task") + ", " + Recup.seconds(row.total_s) + ". Click to see these alone.";
      made.append(Recup.element("i", "swatch p" + colour(row, number)), Recup.element("span", "name", row.name));
      made.addEventListener("click", () => this.only(this.prefixShown === number ? -1 : number));
      this.legend.append(made);
    });
    if (left) {
      const rest = Recup.element("span", "key");
      rest.append(Recup.element("i", "swatch p" + COLOURS), Recup.element("span", "name", Recup.count(left) + (left === 1 ? " other prefix" : " other prefixes")));
      this.legend.append(rest);
    }
    const idle = Recup.element("span", "key");
    idle.append(Recup.element("i", "swatch idle"), Recup.element("span", "name", "idle"));
    this.legend.append(idle);
    if (rows.length && this.about.has_failures) {
      const failed = Recup.element("span", "key");
      failed.append(Recup.element("i", "swatch failed"), Recup.element("span", "name", "gave no result"));
      this.legend.append(failed);
    }
  }

  only(prefix) {
    this.prefixShown = prefix;
    for (const each of this.legend.querySelectorAll("button")) each.setAttribute("aria-pressed", String(Number(each.dataset.number) === prefix));
    this.draw();
  }

  listen() {
    const place = (event) => {
      const box = this.scroller.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    let press = null;
    this.scroller.addEventListener("wheel", (event) => {
      const isZoom = event.ctrlKey || event.metaKey || document.activeElement === this.scroller;
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        this.axis.pan(event.deltaX / this.width());
      } else if (isZoom && !event.shiftKey) {
        event.preventDefault();
        this.axis.zoom(Math.exp(Math.max(-120, Math.min(120, event.deltaY)) / 300), this.momentAt(place(event).x));
      }
    }, { passive: false });
    this.scroller.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || place(event).x > this.scroller.clientWidth) return;
      const at = place(event);
      press = { ...at, isPan: event.shiftKey, last: at.x };
      this.scroller.setPointerCapture(event.pointerId);
      this.scroller.focus({ preventScroll: true });
    });
    this.scroller.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (press && press.isPan) {
        this.axis.pan((press.last - at.x) / this.width());
        press.last = at.x;
      } else if (press && Math.abs(at.x - press.x) > 4) {
        const [left, right] = [Math.min(at.x, press.x), Math.max(at.x, press.x)].map((x) => Math.max(GUTTER, Math.min(x, GUTTER + this.width())));
        this.select.style.left = left + "px";
        this.select.style.width = right - left + "px";
        this.select.classList.add("on");
        this.hideTip();
      } else this.hover(at, event);
      this.crossAt(at.x);
    });
    this.scroller.addEventListener("pointerup", (event) => {
      if (!press) return;
      const at = place(event), begun = press;
      press = null;
      this.select.classList.remove("on");
      if (begun.isPan) return;
      if (Math.abs(at.x - begun.x) > 4) {
        const moments = [this.momentAt(begun.x), this.momentAt(at.x)].sort((a, b) => a - b);
        this.axis.set(Math.max(0, moments[0]), moments[1]);
      } else this.choose(this.taskAt(at));
    });
    this.scroller.addEventListener("pointerleave", () => { this.hideTip(); this.crossAt(-1); });
    this.scroller.addEventListener("dblclick", () => this.axis.reset());
    this.scroller.addEventListener("scroll", () => this.later());
    this.scroller.addEventListener("keydown", (event) => {
      const acts = {
        ArrowLeft: () => this.axis.pan(-0.2), ArrowRight: () => this.axis.pan(0.2),
        "+": () => this.axis.zoom(0.5), "=": () => this.axis.zoom(0.5), "-": () => this.axis.zoom(2), "0": () => this.axis.reset(),
        Home: () => this.axis.pan(-1e9), End: () => this.axis.pan(1e9),
        Enter: () => this.step(event.shiftKey ? -1 : 1), Escape: () => { this.choose(-1); this.scroller.blur(); },
      };
      if (acts[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); acts[event.key](); }
    });
    let waiting = null;
    this.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => this.find(this.search.value), 250); });
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      clearTimeout(waiting);
      if (this.asked !== this.search.value) this.find(this.search.value).then(() => this.step(1));
      else this.step(event.shiftKey ? -1 : 1);
    });
    new ResizeObserver(() => this.later()).observe(this.scroller);
  }

  width() { return Math.max(50, this.scroller.clientWidth - GUTTER - RIGHT); }
  momentAt(x) { return this.axis.from + (x - GUTTER) / this.width() * (this.axis.to - this.axis.from); }
  xAt(moment) { return GUTTER + (moment - this.axis.from) / (this.axis.to - this.axis.from) * this.width(); }

  laneAt(y) {
    const lane = Math.floor((y + this.scroller.scrollTop) / this.laneHeight);
    return y < this.height - AXIS_HEIGHT && lane < this.about.lanes.length ? lane : -1;
  }

  taskAt(place) {
    const lane = this.laneAt(place.y);
    if (lane < 0 || place.x < GUTTER || !this.tasks) return -1;
    return this.tasks.at(lane, this.momentAt(place.x), 3 * (this.axis.to - this.axis.from) / this.width());
  }

  /* -------------------------------------------------- what a task is */

  facts(i) {
    const tasks = this.tasks, lane = this.about.lanes[tasks.lane[i]], outcome = tasks.outcome(i);
    const attempt = tasks.columns.attempt[i];
    const size = tasks.size(i);
    return [
      ["prefix", tasks.prefixName(i)],
      ["group", tasks.group(i) === tasks.prefixName(i) ? "" : tasks.group(i)],
      ["took", (tasks.isUnfinished(i) ? "no end is recorded; at least began, and the attempt ended after " : "") + Recup.seconds(tasks.stop[i] - tasks.start[i], 4)],
      ["from", Recup.moment(tasks.start[i], 1e-4) + " to " + Recup.moment(tasks.stop[i], 1e-4)],
      ["worker", lane.address + (lane.host ? " on " + lane.host : "") + (lane.thread ? ", thread " + lane.thread : ", thread not told")],
      ["result", size ? (size.endsWith(" B") ? size : "about " + size) : ""],
      ["outcome", outcome === "memory" ? "" : outcome.replaceAll("_", " ")],
      ["attempt", attempt > 1 ? "number " + attempt : ""],
    ].filter((each) => each[1]);
  }

  hover(at, event) {
    const i = this.taskAt(at);
    if (i < 0) {
      const lane = at.x < GUTTER ? this.laneAt(at.y) : -1;
      return lane < 0 ? this.hideTip() : this.showTip(event, [["", this.laneText(lane)], ["", Recup.plural(this.about.counts[lane], "task")]]);
    }
    const [first, ...rest] = [["", this.tasks.key(i)], ...this.facts(i).filter((each) => !["group", "worker"].includes(each[0]))];
    return this.showTip(event, [first, ...rest]);
  }

  laneText(lane) {
    const told = this.about.lanes[lane];
    return told.address + (told.host ? " on " + told.host : "") + (told.thread ? ", thread " + told.thread : ", tasks without a thread");
  }

  showTip(event, rows) {
    this.tip.replaceChildren(...rows.map(([name, value], number) => {
      const row = Recup.element("div", number ? "" : "first");
      if (name) row.append(Recup.element("span", "label", name));
      row.append(Recup.element("span", "", value));
      return row;
    }));
    this.tip.classList.add("on");
    const box = this.tip.getBoundingClientRect();
    this.tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    this.tip.style.top = (event.clientY + 18 + box.height > innerHeight ? Math.max(4, event.clientY - box.height - 12) : event.clientY + 18) + "px";
  }

  hideTip() { this.tip.classList.remove("on"); }

  crossAt(x) {
    for (const each of Recup.crossings) each(x >= GUTTER && x <= GUTTER + this.width() ? x : -1);
  }

  choose(i) {
    this.chosen = i;
    this.details.replaceChildren();
    if (i >= 0) {
      const list = Recup.element("dl");
      for (const [name, value] of this.facts(i)) list.append(Recup.element("dt", "", name), Recup.element("dd", "", value));
      const key = this.tasks.key(i);
      const head = Recup.element("p", "key-text");
      head.append(Recup.element("i", "swatch p" + this.tasks.colours[this.tasks.prefix[i]]), Recup.element("code", "", key));
      this.details.append(head, list);
      if (this.about.keys === "full") {
        const quoted = "'" + key.replaceAll("'", "'\\''") + "'";
        this.details.append(Recup.element("p", "hint", "All that happened to it: "), Recup.element("code", "command", "recup story " + quoted + " --run " + this.root.dataset.run));
      }
    }
    this.draw();
  }

  /* -------------------------------------------------- search */

  async find(query) {
    const wanted = query.trim().toLowerCase(), tasks = this.tasks;
    this.asked = query;
    this.matchAt = -1;
    this.matchList = [];
    this.matches = null;
    if (!wanted || !tasks) {
      this.found.textContent = "";
      this.previous.disabled = this.next.disabled = true;
      return this.draw();
    }
    const matches = new Uint8Array(tasks.count), list = [];
    const isNamed = tasks.groups.map(([prefix, group]) => group.toLowerCase().includes(wanted) || this.about.prefixes[prefix].name.toLowerCase().includes(wanted));
    // Of a token of which only the beginning is in the file, only the beginning can be held against what is asked.
    const cut = wanted.replace(/([0-9a-f]{6})[0-9a-f-]{10,}/g, "$1");
    const isShort = this.about.keys === "short";
    for (let i = 0; i < tasks.count; i++) {
      if (isNamed[tasks.columns.group[i]]) matches[i] = 1;
      else if (this.about.keys !== "none") {
        const key = tasks.key(i).toLowerCase();
        if (key.includes(wanted) || (isShort && cut !== wanted && key.includes(cut))) matches[i] = 1;
      }
      if (matches[i]) list.push(i);
      if (i % 100000 === 99999) {
        this.found.textContent = "looking …";
        await new Promise((go) => setTimeout(go));
        if (this.asked !== query) return undefined;
      }
    }
    list.sort((a, b) => tasks.start[a] - tasks.start[b]);
    this.matches = matches;
    this.matchList = list;
    this.previous.disabled = this.next.disabled = !list.length;
    this.found.textContent = list.length ? Recup.plural(list.length, "match") : "no match";
    return this.draw();
  }

  step(by) {
    if (!this.matchList.length) return;
    this.matchAt = (this.matchAt + by + this.matchList.length) % this.matchList.length;
    if (this.matchAt < 0) this.matchAt += this.matchList.length;
    this.found.textContent = Recup.count(this.matchAt + 1) + " of " + Recup.plural(this.matchList.length, "match");
    this.show(this.matchList[this.matchAt]);
  }

  show(i) {
    const tasks = this.tasks, took = tasks.stop[i] - tasks.start[i];
    const width = Math.min(this.axis.end, Math.max(took * 8, this.axis.least * 10, Math.min(this.axis.to - this.axis.from, took * 60 + this.axis.end / 200)));
    const middle = (tasks.start[i] + tasks.stop[i]) / 2;
    const top = tasks.lane[i] * this.laneHeight, seen = this.height - AXIS_HEIGHT;
    if (top < this.scroller.scrollTop || top + this.laneHeight > this.scroller.scrollTop + seen) this.scroller.scrollTop = Math.max(0, top - seen / 2);
    this.axis.set(middle - width / 2, middle + width / 2);
    this.choose(i);
  }

  /* -------------------------------------------------- canvas */

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    const begun = performance.now();
    const ratio = window.devicePixelRatio || 1, full = this.scroller.clientWidth;
    if (!full) return;
    this.canvas.width = Math.round(full * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.width = full + "px";
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.ink = {
      text: Recup.colour("ink"), muted: Recup.colour("muted"), line: Recup.colour("line"), dim: Recup.colour("dimmed"),
      ground: Recup.colour("idle"), stripe: Recup.colour("stripe"), failed: Recup.colour("failed"), accent: Recup.colour("accent"),
      prefixes: Array.from({ length: COLOURS + 1 }, (_, n) => Recup.colour("p" + n)),
      on: Array.from({ length: COLOURS + 1 }, (_, n) => Recup.colour("on-p" + n) || "#fff"),
    };
    pen.fillStyle = this.ink.ground;
    pen.fillRect(0, 0, full, this.height);
    const seen = this.height - AXIS_HEIGHT, top = this.scroller.scrollTop;
    const first = Math.floor(top / this.laneHeight), last = Math.min(this.about.lanes.length, Math.ceil((top + seen) / this.laneHeight));
    this.gridLines(pen, seen);
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, full, seen);
    pen.clip();
    for (let lane = first; lane < last; lane++) {
      const y = lane * this.laneHeight - top;
      if (this.tasks) this.drawLane(pen, lane, y, this.laneHeight);
    }
    this.drawLabels(pen, first, last, top);
    pen.restore();
    this.drawAxis(pen, seen);
    this.extent.textContent = Recup.moment(this.axis.from, (this.axis.to - this.axis.from) / 1000) + " to " + Recup.moment(this.axis.to, (this.axis.to - this.axis.from) / 1000);
    this.drawMs = performance.now() - begun;
  }

  isDimmed(i) {
    if (this.matches) return !this.matches[i];
    return this.prefixShown >= 0 && this.tasks.prefix[i] !== this.prefixShown;
  }

  drawLane(pen, lane, y, height) {
    const pad = height >= 10 ? 1.5 : height >= 6 ? 1 : 0.5, h = height - 2 * pad, tasks = this.tasks;
    const { from, to } = this.axis, scale = this.width() / (to - from), limit = this.width();
    const weights = new Float64Array(COLOURS + 3), DIM = COLOURS + 1, FAILED = COLOURS + 2;
    let column = -1, failedIn = 0;
    const flush = () => {
      if (column < 0) return;
      let best = -1, busy = 0;
      for (let c = 0; c < DIM + 1; c++) {
        busy += weights[c];
        // What is looked for stays visible however little of the pixel it takes.
        if (weights[c] > 0 && (best < 0 || best === DIM || (c !== DIM && weights[c] > weights[best]))) best = c;
      }
      if (best >= 0) {
        const isSought = best !== DIM && (this.matches || this.prefixShown >= 0);
        pen.globalAlpha = isSought ? 1 : Math.max(0.12, Math.min(1, busy));
        pen.fillStyle = best === DIM ? this.ink.dim : this.ink.prefixes[best];
        pen.fillRect(GUTTER + column, y + pad, 1, h);
        pen.globalAlpha = 1;
        if (failedIn) { pen.fillStyle = this.ink.failed; pen.fillRect(GUTTER + column, y + pad + 0.6 * h, 1.5, 0.4 * h); }
      }
      weights.fill(0);
      failedIn = 0;
      column = -1;
    };
    if (this.bins) this.drawBins(pen, lane, y + pad, h);
    for (let i = tasks.firstAfter(lane, from); i < tasks.firsts[lane + 1] && tasks.start[i] < to; i++) {
      let x0 = (tasks.start[i] - from) * scale, x1 = (tasks.stop[i] - from) * scale;
      const isDim = this.isDimmed(i), isFailed = (tasks.columns.outcome[i] & 127) !== 0;
      const colour = isDim ? DIM : tasks.colours[tasks.prefix[i]];
      if (x1 - x0 < 1 && !this.bins) {
        const here = Math.max(0, Math.min(limit - 1, Math.floor(x0)));
        if (here !== column) { flush(); column = here; }
        weights[colour] += Math.max(x1 - x0, 1e-4);
        if (isFailed) failedIn += 1;
        continue;
      }
      flush();
      x0 = Math.max(0, x0);
      x1 = Math.min(limit, x1);
      const w = Math.max(1, x1 - x0);
      pen.fillStyle = isDim ? this.ink.dim : this.ink.prefixes[colour];
      pen.fillRect(GUTTER + x0, y + pad, w > 4 ? w - 0.6 : w, h);
      if (isFailed) this.drawFailed(pen, GUTTER + x0, y + pad, w, h);
      if (i === this.chosen) { pen.strokeStyle = this.ink.text; pen.lineWidth = 2; pen.strokeRect(GUTTER + x0, y + pad, Math.max(w, 2), h); }
      if (w > 46 && h >= 11 && !isDim) this.drawName(pen, i, GUTTER + x0, y + pad, w, h);
    }
    flush();
    if (this.chosen >= 0 && tasks.lane[this.chosen] === lane) {
      const x = this.xAt(tasks.start[this.chosen]);
      if (x >= GUTTER && x <= GUTTER + limit) { pen.fillStyle = this.ink.text; pen.fillRect(x - 1, y, 2, height); }
    }
  }

  drawBins(pen, lane, y, h) {
    const { per_lane: count, width_s: step, busy, prefix } = this.bins, { from, to } = this.axis;
    const scale = this.width() / (to - from);
    const first = Math.max(0, Math.floor(from / step)), last = Math.min(count, Math.ceil(to / step));
    const share = Math.max(1, Math.floor((last - first) / this.width()));
    const weights = new Float64Array(COLOURS + 1);
    for (let bin = first; bin < last; bin += share) {
      weights.fill(0);
      let total = 0;
      const end = Math.min(last, bin + share);
      for (let b = bin; b < end; b++) {
        const value = busy[lane * count + b] / 255;
        total += value;
        weights[this.tasks.colours[prefix[lane * count + b]]] += value;
      }
      if (!total) continue;
      let best = 0;
      for (let c = 1; c <= COLOURS; c++) if (weights[c] > weights[best]) best = c;
      const isDim = this.prefixShown >= 0 && this.tasks.colours[this.prefixShown] !== best;
      const left = Math.max(0, (bin * step - from) * scale), right = Math.min(this.width(), (end * step - from) * scale);
      pen.globalAlpha = Math.max(0.1, Math.min(1, total / (end - bin)));
      pen.fillStyle = isDim ? this.ink.dim : this.ink.prefixes[best];
      pen.fillRect(GUTTER + left, y, right - left, h);
    }
    pen.globalAlpha = 1;
  }

  drawFailed(pen, x, y, w, h) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, w, h);
    pen.clip();
    pen.strokeStyle = this.ink.failed;
    pen.lineWidth = 2;
    pen.beginPath();
    for (let left = x - h; left < x + w; left += 7) { pen.moveTo(left, y + h); pen.lineTo(left + h, y); }
    pen.stroke();
    pen.restore();
    pen.fillStyle = this.ink.failed;
    pen.fillRect(x, y, Math.min(2, w), h);
  }

  drawName(pen, i, x, y, w, h) {
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = this.ink.on[this.tasks.colours[this.tasks.prefix[i]]];
    const name = this.tasks.prefixName(i);
    let fits = Math.floor((w - 10) / 6.2);
    if (fits < 3) return;
    pen.fillText(name.length > fits ? name.slice(0, fits - 1) + "…" : name, x + 5, y + h / 2 + 0.5, w - 8);
  }

  drawLabels(pen, first, last, top) {
    const lanes = this.about.lanes, height = this.laneHeight;
    pen.fillStyle = this.ink.ground;
    pen.fillRect(0, 0, GUTTER, this.height);
    pen.textBaseline = "middle";
    let shownTo = -100;
    for (let lane = first; lane < last; lane++) {
      const told = lanes[lane], before = lanes[lane - 1], y = lane * height - top;
      const isNewWorker = !before || before.worker_id !== told.worker_id;
      if (isNewWorker) { pen.fillStyle = this.ink.line; pen.fillRect(0, y, this.scroller.clientWidth, 1); }
      if (height >= 12) {
        pen.font = "11px system-ui, sans-serif";
        if (isNewWorker || lane === first) {
          pen.fillStyle = this.ink.text;
          pen.fillText(this.workerLabel(told), 2, y + height / 2 + 0.5, GUTTER - 30);
        }
        pen.fillStyle = this.ink.muted;
        pen.textAlign = "right";
        pen.fillText(told.thread ? String(told.thread) : "?", GUTTER - 8, y + height / 2 + 0.5);
        pen.textAlign = "left";
      } else if (isNewWorker && y >= shownTo + 12) {
        pen.font = "10.5px system-ui, sans-serif";
        pen.fillStyle = this.ink.text;
        pen.fillText(this.workerLabel(told), 2, y + 7, GUTTER - 10);
        shownTo = y;
      }
    }
  }

  workerLabel(told) {
    const port = told.address.replace(/^[a-z]+:\/\//, "");
    const text = told.name && told.name.length <= 12 && told.name !== told.address ? (told.host ? told.host + " / " : "") + told.name : port;
    return text.length > 22 ? text.slice(0, 10) + "…" + text.slice(-11) : text;
  }

  ticks() {
    const span = this.axis.to - this.axis.from, rough = span / Math.max(2, Math.floor(this.width() / 110));
    let step;
    if (rough > 30) step = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400].find((each) => each >= rough) || 86400 * Math.ceil(rough / 86400);
    else {
      const power = 10 ** Math.floor(Math.log10(rough));
      step = [1, 2, 5, 10].find((each) => each * power >= rough * 0.999) * power;
    }
    const found = [];
    for (let n = Math.ceil(this.axis.from / step - 1e-9); n * step <= this.axis.to * (1 + 1e-12); n++) found.push(n * step);
    return { step, moments: found };
  }

  gridLines(pen, seen) {
    pen.fillStyle = this.ink.line;
    for (const moment of this.ticks().moments) pen.fillRect(Math.round(this.xAt(moment)), 0, 1, seen);
  }

  drawAxis(pen, seen) {
    const { step, moments } = this.ticks();
    pen.fillStyle = this.ink.line;
    pen.fillRect(GUTTER, seen, this.width(), 1);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "top";
    pen.textAlign = "center";
    for (const moment of moments) {
      const x = Math.round(this.xAt(moment));
      pen.fillStyle = this.ink.line;
      pen.fillRect(x, seen, 1, 5);
      pen.fillStyle = this.ink.muted;
      if (x < GUTTER + this.width() - 16) pen.fillText(Recup.moment(moment, step), x, seen + 8);
    }
    pen.textAlign = "left";
  }
}

Recup.crossings = [];

/* ------------------------------------------------------------------ strips */

const UNITS = {
  bytes: Recup.bytes,
  bytes_per_s: (value) => Recup.bytes(value) + "/s",
  s: Recup.seconds,
  "": (value) => String(Number(value.toPrecision(4))),
};

class Strips {
  constructor(root, told, axis) {
    this.root = root;
    this.told = told;
    this.axis = axis;
    this.plots = [];
    this.build();
    axis.listeners.push(() => this.follow());
    new ResizeObserver(() => this.resize()).observe(root);
  }

  build() {
    for (const plot of this.plots) plot.destroy();
    this.root.replaceChildren();
    this.plots = this.told.strips.map((strip) => this.plot(strip));
  }

  width() { return Math.max(200, this.root.clientWidth); }

  plot(strip) {
    const format = UNITS[strip.unit], box = Recup.element("div", "strip");
    const head = Recup.element("div", "strip-head");
    head.append(Recup.element("b", "", strip.title), Recup.element("span", "basis", strip.basis));
    const values = [];
    strip.series.forEach((series, number) => {
      const key = Recup.element("span", "key"), value = Recup.element("span", "value");
      key.append(Recup.element("i", "swatch s" + number), Recup.element("span", "name", series.name), value);
      values.push(value);
      head.append(key);
    });
    const place = Recup.element("div", "plot");
    box.append(head, place);
    this.root.append(box);
    const muted = Recup.colour("muted"), line = Recup.colour("line");
    const plot = new uPlot({
      width: this.width(), height: STRIP_HEIGHT, padding: [6, RIGHT, 7, 0], legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { show: false } },
      scales: {
        x: { time: false, range: () => [this.axis.from, this.axis.to] },
        y: { range: (u, low, high) => [0, high > 0 ? high * 1.08 : 1] },
      },
      axes: [
        { show: false },
        {
          size: GUTTER, stroke: muted, font: "11px system-ui, sans-serif", grid: { stroke: line, width: 1 }, ticks: { show: false },
          space: 30, splits: strip.unit.startsWith("bytes") ? bytesSplits : undefined, values: (u, all) => all.map(format), gap: 8,
        },
      ],
      series: [{}, ...strip.series.map((series, number) => ({
        stroke: Recup.colour("s" + number), width: 1.5, points: { show: false }, spanGaps: false,
        fill: number === 0 ? Recup.colour("s0-fill") : undefined,
      }))],
      hooks: {
        setSelect: [(u) => {
          if (u.select.width > 4) this.axis.set(Math.max(0, u.posToVal(u.select.left, "x")), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
        setCursor: [(u) => {
          const place = u.cursor.idx;
          values.forEach((each, number) => {
            const told = place === null || place === undefined ? null : u.data[number + 1][place];
            each.textContent = told === null || told === undefined ? "" : format(told);
          });
          if (!this.isFollowing) {
            const left = u.cursor.left;
            for (const each of Recup.crossings) each(left >= 0 ? left + GUTTER : -1, u);
          }
        }],
      },
    }, [this.told.at_s, ...strip.series.map((series) => series.values)], place);
    plot.over.addEventListener("dblclick", () => this.axis.reset());
    return plot;
  }

  follow() { for (const plot of this.plots) plot.setScale("x", { min: this.axis.from, max: this.axis.to }); }
  resize() { for (const plot of this.plots) if (plot.width !== this.width()) plot.setSize({ width: this.width(), height: STRIP_HEIGHT }); }

  crossAt(x, origin) {
    this.isFollowing = true;
    for (const plot of this.plots) if (plot !== origin) plot.setCursor({ left: x < 0 ? -10 : x - GUTTER, top: 1 });
    this.isFollowing = false;
  }
}

function bytesSplits(u, axis, low, high, step) {
  const power = 1024 ** Math.floor(Math.log(Math.max(high, 1)) / Math.log(1024));
  const rough = high / power / 2;
  const nice = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => each >= rough * 0.7) || rough;
  const found = [];
  for (let n = 0; n * nice * power <= high; n++) found.push(n * nice * power);
  return found;
}

/* ------------------------------------------------------------------ start */

Recup.startTimelines = function () {
  const places = [...document.querySelectorAll("[data-timeline]")];
  const told = places.map((each) => Recup.data(each.dataset.timeline));
  const end = Math.max(1e-6, ...told.map((each) => each.wall_s));
  const axis = new Axis(end);
  const lines = places.map((each, number) => new Timeline(each, told[number], axis));
  const strips = [...document.querySelectorAll("[data-strips]")].map((each) => new Strips(each, Recup.data(each.dataset.strips), axis));
  Recup.crossings = [
    (x) => lines.forEach((each) => { each.cross.classList.toggle("on", x >= 0); each.cross.style.left = x + "px"; }),
    (x, origin) => strips.forEach((each) => each.crossAt(x, origin)),
  ];
  window.recupTimelines = lines;
  window.recupStrips = strips;
  window.recupTimeline = lines[0];
  Recup.redraw = () => { lines.forEach((each) => each.draw()); strips.forEach((each) => each.build()); };
};

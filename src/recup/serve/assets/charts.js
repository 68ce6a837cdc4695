// Canvas drawings of the live page: stacked areas, lines, and tasks on lanes.

const COLOURS = 11;
/** Name of the colour of a prefix, by its number. */
export function colour(prefix) { return prefix < 0 ? "p11" : `p${prefix % COLOURS}`; }

export function theme(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }

/** A canvas of this height, cleared, in CSS pixels. */
function begin(canvas, height) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  const pixels = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return [pen, width, height];
}

/** Round numbers from 0 up to a highest value, in a unit whose steps may be binary. */
function ticks(highest, base = 10) {
  if (!(highest > 0)) return [0];
  let step = base ** Math.floor(Math.log(highest / 2) / Math.log(base));
  for (const factor of base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]) {
    if (highest / (step * factor) <= 4) { step *= factor; break; }
  }
  const found = [];
  for (let value = 0; value <= highest * 1.0001; value += step) found.push(value);
  return found;
}

function axes(pen, width, height, { duration, highest, text, time, base }) {
  const plain = text;
  text = (value) => plain(value).replace(/\.0+(?=\D|$)/, "");
  const bottom = height - 16, marks = ticks(highest, base), top = Math.max(highest, marks.at(-1)) || 1;
  const left = Math.max(...marks.map((value) => pen.measureText(text(value)).width), 10) + 8;
  const y = (value) => bottom - (value / top) * (bottom - 6), x = (at) => left + (at / Math.max(duration, 1e-9)) * (width - left - 6);
  pen.strokeStyle = theme("line"); pen.fillStyle = theme("quiet"); pen.lineWidth = 1;
  pen.textAlign = "right"; pen.textBaseline = "middle";
  for (const value of marks) {
    pen.beginPath(); pen.moveTo(left, Math.round(y(value)) + 0.5); pen.lineTo(width - 6, Math.round(y(value)) + 0.5); pen.stroke();
    pen.fillText(text(value), left - 6, y(value));
  }
  pen.textBaseline = "alphabetic"; pen.textAlign = "left"; pen.fillText("0", left, height - 3);
  pen.textAlign = "right"; pen.fillText(time(duration), width - 6, height - 3);
  return [x, y];
}

/** Areas upon each other; `parts` are {values, colour}, the first at the bottom. */
export function areas(canvas, height, { parts, step, duration, text, time }) {
  const [pen, width] = begin(canvas, height);
  const points = parts[0]?.values.length ?? 0;
  const below = new Array(points).fill(0), tops = parts.map(({ values }) => values.map((value, i) => (below[i] += value)));
  const [x, y] = axes(pen, width, height, { duration, highest: Math.max(0, ...below), text, time });
  for (let part = parts.length - 1; part >= 0; part--) {
    pen.fillStyle = parts[part].colour;
    pen.beginPath(); pen.moveTo(x(0), y(0));
    for (let i = 0; i < points; i++) {
      const from = Math.min(i * step, duration), to = Math.min((i + 1) * step, duration);
      pen.lineTo(x(from), y(tops[part][i])); pen.lineTo(x(to), y(tops[part][i]));
    }
    pen.lineTo(x(Math.min(points * step, duration)), y(0)); pen.fill();
  }
}

/** One line with its area; points without a value are left out. */
export function strip(canvas, height, { values, step, duration, text, time, base, colour: stroke }) {
  const [pen, width] = begin(canvas, height);
  const known = values.filter((value) => value !== null);
  const [x, y] = axes(pen, width, height, { duration, highest: Math.max(0, ...known), text, time, base });
  pen.fillStyle = stroke; pen.strokeStyle = stroke;
  const line = new Path2D(), area = new Path2D();
  let begun = false, last = 0;
  area.moveTo(x(0), y(0));
  values.forEach((value, i) => {
    if (value === null) return;
    const at = Math.min((i + 0.5) * step, duration);
    if (begun) line.lineTo(x(at), y(value)); else { line.moveTo(x(at), y(value)); area.lineTo(x(at), y(0)); }
    area.lineTo(x(at), y(value)); begun = true; last = at;
  });
  area.lineTo(x(last), y(0));
  pen.globalAlpha = 0.15; pen.fill(area);
  pen.globalAlpha = 1; pen.lineWidth = 1.5; pen.stroke(line);
}

const GAP = 6;
/** Tasks on lanes; returns what is at a point of the canvas. */
export function lanes(canvas, { workers, bars, running, now, span, time, end }) {
  const total = workers.reduce((sum, worker) => sum + Math.max(1, worker.lanes), 0);
  const size = total <= 24 ? 16 : total <= 64 ? 11 : 7;
  const height = total * size + workers.length * GAP + 20;
  const [pen, width] = begin(canvas, height);
  pen.font = "11.5px system-ui, sans-serif";
  const names = workers.map((worker) => worker.label);
  const left = Math.min(170, Math.max(30, ...names.map((name) => pen.measureText(name).width)) + 12), right = width - 4;
  const x = (at) => left + (1 - (now - at) / span) * (right - left);
  const tops = new Map(), places = [], colours = Array.from({ length: COLOURS + 1 }, (_, i) => theme(`p${i}`)), card = theme("card"), erred = theme("erred"), ink = theme("ink");
  const fill = (prefix) => colours[prefix < 0 ? COLOURS : prefix % COLOURS];
  let top = 2;
  for (const worker of workers) {
    const rows = Math.max(1, worker.lanes);
    tops.set(worker.number, top);
    pen.fillStyle = theme("soft"); pen.fillRect(left, top, right - left, rows * size);
    pen.fillStyle = theme("card");
    for (let lane = 0; lane < rows; lane++) pen.fillRect(left, top + lane * size + 1, right - left, size - 2);
    pen.fillStyle = worker.gone_s === null ? theme("ink") : theme("quiet");
    pen.textAlign = "right"; pen.textBaseline = "middle";
    pen.fillText(cut(pen, worker.label, left - 10), left - 7, top + (rows * size) / 2);
    if (!worker.is_captured) {
      pen.textAlign = "left"; pen.fillStyle = theme("quiet"); pen.fillText("not recorded itself", left + 8, top + (rows * size) / 2);
    } else if (worker.gone_s !== null && x(worker.gone_s) > left) {
      pen.fillStyle = theme("quiet"); pen.textAlign = "left";
      pen.fillRect(x(worker.gone_s), top, 1.5, rows * size); pen.fillText(" gone", x(worker.gone_s) + 3, top + (rows * size) / 2);
    }
    top += rows * size + GAP;
  }
  const draw = (bar, isOpen) => {
    if (!tops.has(bar.worker) || bar.stop < now - span) return;
    const from = Math.max(left, x(bar.start)), wide = Math.max(0.7, Math.min(right, x(bar.stop)) - from), y = tops.get(bar.worker) + bar.lane * size + 1.5;
    pen.fillStyle = fill(bar.prefix); pen.globalAlpha = isOpen ? 1 : 0.85;
    pen.fillRect(from, y, wide, size - 3);
    if (isOpen) { pen.fillStyle = ink; pen.globalAlpha = 1; pen.fillRect(right - 2, y, 2, size - 3); }
    if (bar.failed) { pen.fillStyle = erred; pen.globalAlpha = 1; pen.fillRect(from, y, Math.max(2, wide), 3); }
    if (!isOpen && wide > 3) { pen.globalAlpha = 1; pen.fillStyle = card; pen.fillRect(from + wide - 0.75, y, 0.75, size - 3); }
    pen.globalAlpha = 1;
    places.push([from, y, wide, size - 3, bar, isOpen]);
  };
  for (const bar of bars) draw(bar, false);
  for (const bar of running) draw(bar, true);
  pen.fillStyle = theme("quiet"); pen.textBaseline = "alphabetic";
  pen.textAlign = "left"; pen.fillText(`${time(span)} ${end === "now" ? "ago" : "before"}`, left, height - 4);
  pen.textAlign = "right"; pen.fillText(end, right, height - 4);
  return (px, py) => places.findLast(([from, y, wide, high]) => px >= from - 1 && px <= from + wide + 1 && py >= y && py <= y + high);
}

function cut(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && pen.measureText("…" + text.slice(-end)).width > width) end--;
  return "…" + text.slice(-end);
}

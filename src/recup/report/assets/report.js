/* Tables, folding, contents and theme of a report.  Text of a run only ever becomes textContent. */
"use strict";

(function () {
  const make = Recup.element, FIRST_ROWS = 12;
  const tables = Recup.data("tables") || {};

  /* ---------------------------------------------------------------- tables */

  class Table {
    constructor(root, told) {
      this.root = root;
      this.told = told;
      this.order = Array.from({ length: told.shown_count }, (_, row) => row);
      this.sorted = -1;
      this.isDown = false;
      this.isWhole = told.shown_count <= FIRST_ROWS + 3;
      const head = root.querySelector("h3"), bar = make("div", "table-head");
      head.replaceWith(bar);
      bar.append(head);
      if (!told.shown_count) { root.append(make("p", "note", "none")); return; }
      const csv = make("button", "csv", "CSV");
      csv.type = "button";
      csv.title = "Download these " + Recup.plural(told.shown_count, "row") + " as CSV";
      csv.addEventListener("click", () => this.download());
      bar.append(csv);
      this.table = make("table", "data");
      this.heading();
      this.body = make("tbody");
      this.table.append(this.body);
      const scroll = make("div", "scroll");
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", told.title);
      scroll.append(this.table);
      this.below = make("p", "note");
      root.append(scroll, this.below);
      this.fill();
    }

    heading() {
      const line = make("tr");
      this.told.columns.forEach((column, place) => {
        const cell = make("th", column.is_number ? "number" : ""), press = make("button", "", column.heading);
        cell.scope = "col";
        press.type = "button";
        press.title = column.name + ": click to sort";
        press.addEventListener("click", () => this.sort(place));
        cell.append(press);
        line.append(cell);
      });
      const head = make("thead");
      head.append(line);
      this.table.append(head);
    }

    sort(place) {
      const { values, is_number: isNumber } = this.told.columns[place];
      this.isDown = this.sorted === place ? !this.isDown : isNumber;
      this.sorted = place;
      const sign = this.isDown ? -1 : 1;
      this.order.sort((a, b) => {
        const one = values[a], other = values[b];
        if (one === null || other === null) return (one === null) - (other === null) || a - b;
        if (one === other) return a - b;
        return sign * (isNumber ? one - other : String(one).localeCompare(String(other), "en", { numeric: true }));
      });
      [...this.table.tHead.rows[0].cells].forEach((cell, number) => {
        if (number === place) cell.setAttribute("aria-sort", this.isDown ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      this.fill();
    }

    fill() {
      const { columns, row_count: all, shown_count: here } = this.told, lines = [];
      for (const row of this.isWhole ? this.order : this.order.slice(0, FIRST_ROWS)) {
        const line = make("tr");
        for (const column of columns) {
          const value = (column.texts || column.values)[row];
          const cell = make("td", column.is_number ? "number" : "", value === null ? "" : value);
          if (typeof value === "string" && value.length > 40) { cell.title = value; cell.classList.add("long"); }
          if ((column.name.endsWith("_share") || column.name === "share") && typeof column.values[row] === "number") this.meter(cell, column.values[row]);
          line.append(cell);
        }
        lines.push(line);
      }
      this.body.replaceChildren(...lines);
      this.below.replaceChildren();
      if (!this.isWhole || (this.isWhole && here > FIRST_ROWS + 3)) {
        const more = make("button", "more", this.isWhole ? "Show fewer" : "Show all " + Recup.plural(here, "row"));
        more.type = "button";
        more.addEventListener("click", () => { this.isWhole = !this.isWhole; this.fill(); });
        this.below.append(more);
      }
      if (all > here) this.below.append(make("span", "", Recup.count(all - here) + " of " + Recup.plural(all, "row") + " are left out of this file."));
    }

    meter(cell, share) {
      cell.classList.add("share");
      cell.style.setProperty("--share", (share >= 0 && share <= 1 ? 100 * share : 0).toFixed(1) + "%");
    }

    csv() {
      const quoted = (value) => {
        if (value === null) return "";
        const text = String(value);
        return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
      };
      const { columns } = this.told;
      const lines = [columns.map((column) => quoted(column.name)).join(",")];
      for (const row of this.order) lines.push(columns.map((column) => quoted(column.values[row])).join(","));
      return lines.join("\r\n") + "\r\n";
    }

    download() {
      const link = make("a"), address = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" }));
      link.href = address;
      link.download = this.told.name + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    }
  }

  const built = new Map();

  function buildTables(within) {
    for (const place of within.querySelectorAll("[data-table]")) {
      if (built.has(place) || place.closest("details:not([open])")) continue;
      built.set(place, new Table(place, tables[place.dataset.table]));
    }
  }

  /* ---------------------------------------------------------------- folding and contents */

  const sections = [...document.querySelectorAll("details")];
  for (const each of sections) each.addEventListener("toggle", () => { if (each.open) buildTables(each); });

  function openFor(hash) {
    const target = hash.length > 1 ? document.getElementById(decodeURIComponent(hash.slice(1))) : null;
    if (!target) return;
    for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    buildTables(document);
    target.scrollIntoView();
  }

  addEventListener("hashchange", () => openFor(location.hash));
  document.getElementById("open-all").addEventListener("click", () => { for (const each of sections) each.open = true; });
  document.getElementById("fold-all").addEventListener("click", () => { for (const each of sections) each.open = false; });

  const links = [...document.querySelectorAll("nav.contents a")];
  const targets = links.map((each) => document.getElementById(each.hash.slice(1)));
  const watch = new IntersectionObserver(() => {
    let here = 0;
    targets.forEach((each, number) => { if (each && each.getBoundingClientRect().top < 120) here = number; });
    links.forEach((each, number) => { if (number === here) each.setAttribute("aria-current", "true"); else each.removeAttribute("aria-current"); });
  }, { rootMargin: "-100px 0px 0px 0px", threshold: [0, 0.01, 0.5, 1] });
  for (const each of targets) if (each) watch.observe(each);

  /* ---------------------------------------------------------------- theme */

  const themes = ["auto", "light", "dark"], button = document.getElementById("theme"), page = document.documentElement;
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("recup-theme");
      localStorage.setItem("recup-theme", value);
    } catch { /* a page from a file may have no store */ }
    return null;
  };

  function setTheme(name) {
    page.dataset.theme = name;
    button.textContent = name;
    if (Recup.redraw) Recup.redraw();
  }

  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(page.dataset.theme) + 1) % themes.length];
    setTheme(next);
    stored(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (Recup.redraw) Recup.redraw(); });

  /* On paper everything is open and light. */
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: page.dataset.theme, open: sections.map((each) => each.open) };
    for (const each of sections) each.open = true;
    buildTables(document);
    setTheme("light");
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    sections.forEach((each, number) => { each.open = before.open[number]; });
    setTheme(before.theme);
    before = null;
  });

  /* ---------------------------------------------------------------- start */

  const wanted = stored();
  if (themes.includes(wanted)) { page.dataset.theme = wanted; button.textContent = wanted; }
  const told = Recup.data("timeline") || Recup.data("timeline-a");
  if (told) {
    const places = new Map(told.prefixes.map((each, number) => [each.name, Math.min(number, 11)]));
    for (const each of document.querySelectorAll("[data-prefix]")) each.classList.add("p" + (places.has(each.dataset.prefix) ? places.get(each.dataset.prefix) : 11));
  }
  Recup.startTimelines();
  buildTables(document);
  if (location.hash) openFor(location.hash);
  Recup.tables = built;
  window.recupReady = Promise.all(window.recupTimelines.map((each) => each.ready));
}());

// The page: what is shown is one object, the view; the address holds it.
const page = (() => {
  const { node } = table;
  const $ = (id) => document.getElementById(id);
  const FIRST_DRAWN = 8;
  const POLL_MS = 2000;
  const AFTER_TABLE_MS = 20; // the table is painted first
  let view = {};
  let defaults = {};
  let [lines, colours, plotted, updating, typing, corrected] = [[], new Map(), null, false, false, 0];

  // ---- packed parts ----------------------------------------------------------------------------

  async function unpack(name) {
    const letters = atob($(`packed-${name}`).textContent.trim());
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at += 1) bytes[at] = letters.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function load(name) {
    const script = document.createElement("script");
    script.textContent = await unpack(name);
    document.head.append(script);
    $(`packed-${name}`).remove();
  }

  // ---- the view and the address ----------------------------------------------------------------

  const NUMBERS = new Set(["smooth", "page"]);
  const CHOICES = {
    over: ["step", "epoch", "images", "seconds", "compute"], spread: ["band", "runs"],
    tab: ["curves", "scatter", "parallel"],
  };

  function firstView(given) {
    const { metric, curve, live, differing } = model.data;
    const smallest = given.ascending || model.smallerIsBetter(metric);
    return {
      group: model.BY_EXPERIMENT, metric, curve, baseline: "", margin: null, metrics: extraMetrics(), everything: false,
      search: "", filters: [], sort: [metric, smallest ? "asc" : "desc"], page: table.PAGE, selected: null,
      tab: "curves", drawn: curve, over: "step", smooth: 0, xlog: false, ylog: false, spread: "band",
      across: differing[0] ?? "", up: metric, colour: "", sxlog: false, sylog: false, lastAxis: metric,
      open: "", versus: "", live, ...given, baseline: model.data.lines[given.baseline] ?? given.baseline ?? "",
    };
  }

  const extraMetrics = () => ["train/seconds"].filter((name) => model.metrics().includes(name));

  function readAddress() {
    const found = {};
    for (const [key, text] of new URLSearchParams(location.hash.slice(1))) {
      if (!Object.hasOwn(defaults, key)) continue;
      try {
        const value = JSON.parse(text);
        if (fits(value, defaults[key], key)) found[key] = value;
      } catch { /* an address that somebody broke */ }
    }
    return found;
  }

  // Whether a value of the address has the type of the view.
  function fits(value, known, key) {
    if (key === "margin") return value === null || isMargin(value);
    if (key === "selected") return value === null || isTexts(value);
    if (key === "filters") return Array.isArray(value) && value.every((f) => isTexts(f) && f.length === 3);
    if (key === "sort") return isTexts(value) && ["asc", "desc"].includes(value[1]);
    if (Array.isArray(known)) return isTexts(value);
    if (NUMBERS.has(key)) return Number.isFinite(value);
    if (Object.hasOwn(CHOICES, key)) return CHOICES[key].includes(value);
    return typeof value === typeof known;
  }

  const isMargin = (value) => Number.isFinite(value) && value > 0;
  const isTexts = (value) => Array.isArray(value) && value.every((text) => typeof text === "string");

  function writeAddress() {
    const parts = new URLSearchParams();
    for (const [key, value] of Object.entries(view)) {
      const text = JSON.stringify(value);
      if (text !== JSON.stringify(defaults[key])) parts.set(key, text);
    }
    const hash = parts.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function change(parts, { rebuild = false } = {}) {
    Object.assign(view, parts);
    writeAddress();
    if (rebuild) showTable();
    showControls();
    showCharts();
    if ("open" in parts || "versus" in parts) detail.show($("detail"), view);
  }

  // ---- the table -------------------------------------------------------------------------------

  function showTable() {
    lines = model.lines(view.group);
    if (view.baseline && !lines.some(({ id }) => id === view.baseline)) view.baseline = "";
    corrected = model.compare(lines, view);
    showWarnings();
    updating = true;
    table.show($("table-box"), lines, model.columns(view), view);
    updating = false;
    tableChanged();
  }

  // After a sort, a search or a page.
  function tableChanged() {
    if (updating) return;
    const shown = table.shown();
    showTableNote(shown);
    if (view.selected === null) showCharts();
    else table.mark(colours);
  }

  function showTableNote(shown) {
    const notes = [];
    if (view.baseline) notes.push(testNote());
    const mixed = view.group === model.BY_EXPERIMENT || view.group === model.BY_RUN ? [] : model.mixed(shown);
    if (mixed.length) notes.push(`Lines mix runs that differ in ${mixed.map(model.label).join(", ")}.`);
    if (view.metrics.some(isOfTime) && model.machines(shown).length > 1) notes.push(machinesDiffer(shown));
    $("table-note").textContent = notes.join(" ");
  }

  function testNote() {
    const margin = model.margin(view);
    const equivalence = margin === null ? `No line is called equivalent: there is no margin for ${view.metric}.`
      : `TOST p: the difference is smaller than \u00b1${margin}, corrected likewise.`;
    return `Verdicts at 5 %, from three seeds on. p: t tests against ${view.baseline}, paired where both lines have the `
      + `same seeds, corrected by Holm for the ${corrected} tests of all lines, also of those that a filter hides. `
      + `${equivalence} Undecided: neither is shown; more seeds may decide.`;
  }

  const isOfTime = (metric) => /seconds|per_s$/.test(metric);
  const machinesDiffer = (shown) =>
    `The runs are of ${model.machines(shown).length} machines: do not rank them by seconds.`;

  // ---- the charts ------------------------------------------------------------------------------

  function drawnLines() {
    const shown = table.shown();
    if (view.selected === null) return shown.slice(0, FIRST_DRAWN);
    const wanted = new Set(view.selected);
    return shown.filter(({ id }) => wanted.has(id)).slice(0, charts.MOST);
  }

  // A line keeps its colour while it is drawn.
  function giveColours(drawn) {
    const kept = new Map(drawn.filter(({ id }) => colours.has(id)).map(({ id }) => [id, colours.get(id)]));
    const used = new Set(kept.values());
    let next = 0;
    for (const { id } of drawn) {
      if (kept.has(id)) continue;
      while (used.has(next)) next += 1;
      used.add(next);
      kept.set(id, next);
    }
    return kept;
  }

  function showCharts() {
    const drawn = drawnLines();
    places = giveColours(drawn);
    colours = places;
    table.mark(new Map([...places].map(([id, place]) => [id, charts.style(place).color])));
    showLegend(drawn);
    showChartNote(drawn);
    if (!globalThis.Plotly) return;
    clearTimeout(plotted);
    plotted = setTimeout(() => plot(drawn), AFTER_TABLE_MS);
  }

  let places = new Map();

  function plot(drawn) {
    const runs = table.shown().flatMap((line) => line.runs);
    if (view.tab === "curves") charts.curves($("chart"), drawn, places, view);
    else if (view.tab === "scatter") charts.scatter($("chart"), runs, view);
    else charts.parallel($("chart"), runs, view);
    if (!document.documentElement.dataset.ready) performance.mark("charts");
    document.documentElement.dataset.ready = "yes";
  }

  function showLegend(drawn) {
    $("legend").hidden = view.tab !== "curves";
    $("legend").replaceChildren(...drawn.map((line) => {
      const { color, dash } = charts.style(places.get(line.id));
      const swatch = node("span", { className: "stroke" });
      swatch.style.borderTop = `3px ${{ solid: "solid", dash: "dashed", dot: "dotted" }[dash]} ${color}`;
      return node("li", { title: line.id }, swatch, `${line.id} (n = ${line.runs.length})`);
    }));
  }

  function showChartNote(drawn) {
    const notes = [];
    const all = table.shown().length;
    if (!all) {
      $("chart-note").textContent = "";
      return;
    }
    if (view.tab === "curves") {
      if (drawn.length < all) {
        notes.push(view.selected === null
          ? `The first ${drawn.length} of ${all} lines; tick boxes in the table to choose.`
          : `${drawn.length} chosen of ${all} lines.`);
      }
      if (view.spread === "band") notes.push("Bands: one standard deviation over seeds.");
      if (view.over === "seconds" && model.machines(drawn).length > 1) notes.push(machinesDiffer(drawn));
    } else {
      notes.push(`Each ${view.tab === "scatter" ? "mark" : "line of the chart"} is one run of the shown lines.`);
      const metric = view.tab === "scatter" ? view.up : view.lastAxis;
      if (isOfTime(metric) && model.machines(table.shown()).length > 1) notes.push(machinesDiffer(table.shown()));
      if (view.tab === "parallel") notes.push(`${firstSettings()}From blue, the lowest, to orange, the highest.`);
    }
    $("chart-note").textContent = notes.join(" ");
  }

  function firstSettings() {
    const [some, all] = [charts.fitting($("chart")), model.data.differing.length];
    return some < all ? `The first ${some} of ${all} settings that differ: a wider window shows more. ` : "";
  }

  // ---- controls --------------------------------------------------------------------------------

  function options(id, values, chosen, words = (value) => value) {
    const select = $(id);
    const wanted = values.map((value) => [value, words(value)]);
    const text = JSON.stringify(wanted);
    if (select.dataset.values !== text) {
      select.replaceChildren(...wanted.map(([value, word]) => new Option(word, value)));
      select.dataset.values = text;
    }
    select.value = chosen;
  }

  const GROUPS = model.bare({ experiment: "experiment (over seeds)" });
  const groupName = (key) => GROUPS[key] ?? (model.ALWAYS.includes(key) ? key : model.label(key));

  function showControls() {
    const [metrics, curves, settings] = [model.metrics(), model.curves(), model.data.differing];
    options("group", [...model.ALWAYS, ...settings], view.group, groupName);
    options("metric", metrics, view.metric);
    options("curve", curves, view.curve);
    options("baseline", ["", ...lines.map(({ id }) => id)], view.baseline, (id) => id || "none");
    options("drawn", curves, view.drawn);
    options("across", settings, view.across, model.label);
    options("colour", ["", ...settings], view.colour, (key) => (key ? model.label(key) : "none"));
    options("up", metrics, view.up);
    options("last-axis", metrics, view.lastAxis);
    const columns = model.columns(view);
    options("filter-key", ["name", ...columns.map(({ key }) => key)], $("filter-key").value || "name",
      (key) => columns.find((column) => column.key === key)?.title ?? key);
    $("search").value = view.search;
    $("over").value = view.over;
    $("spread").value = view.spread;
    $("smooth").value = view.smooth;
    for (const id of ["xlog", "ylog", "sxlog", "sylog"]) $(id).checked = view[id];
    showMargin();
    showTabs();
    showFilters();
    showColumns(metrics);
  }

  // News do not change the field while somebody types.
  function showMargin() {
    $("margin").parentElement.hidden = !view.baseline;
    if (!typing) $("margin").value = model.margin(view) ?? "";
  }

  // An empty field, or no number above 0, is the margin that the metric has.
  function setMargin() {
    typing = false;
    const [value, usual] = [$("margin").valueAsNumber, model.margin({ ...view, margin: null })];
    change({ margin: isMargin(value) && value !== usual ? value : null }, { rebuild: true });
  }

  function showTabs() {
    for (const tab of document.querySelectorAll("[role=tab]")) {
      const chosen = tab.dataset.tab === view.tab;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    for (const part of document.querySelectorAll("[data-of]")) part.hidden = part.dataset.of !== view.tab;
  }

  function showFilters() {
    const words = model.bare({
      "=": "is", "!=": "is not", "~": "contains", ">": "is above", "<": "is below",
    });
    $("filters").replaceChildren(...view.filters.map((filter, at) => {
      const [key, how, value] = filter;
      const text = `${model.label(key)} ${words[how] ?? how} ${value}`;
      const button = node("button", { type: "button", className: "chip", textContent: `${text} \u00d7` });
      button.setAttribute("aria-label", `remove filter: ${text}`);
      button.addEventListener("click", () => setFilters(view.filters.filter((_, i) => i !== at)));
      return button;
    }));
  }

  function setFilters(filters) {
    view.filters = filters;
    writeAddress();
    table.filter(filters);
    showFilters();
  }

  function showColumns(metrics) {
    const box = $("columns").lastElementChild;
    const everything = check("all settings, not only those that differ", view.everything,
      (on) => change({ everything: on }, { rebuild: true }));
    const figures = metrics.filter((name) => name !== view.metric).map((name) =>
      check(name, view.metrics.includes(name), (on) => {
        const others = view.metrics.filter((other) => other !== name);
        change({ metrics: on ? [...others, name] : others }, { rebuild: true });
      }));
    const labels = [everything, ...figures].map((label) => label.textContent).join("\n");
    if (box.dataset.labels === labels) return;
    box.dataset.labels = labels;
    box.replaceChildren(everything, ...figures);
  }

  function check(text, checked, act) {
    const box = node("input", { type: "checkbox", checked });
    box.addEventListener("change", () => act(box.checked));
    return node("label", {}, box, ` ${text}`);
  }

  function suggest() {
    const key = $("filter-key").value;
    const column = model.columns(view).find((known) => known.key === key);
    const texts = lines.map((line) => (column ? column.cell(line).text : line.id));
    const known = [...new Set(texts)].filter(Boolean).slice(0, 50);
    $("filter-values").replaceChildren(...known.map((text) => new Option(text)));
  }

  function bind() {
    const set = (id, event, key, read = (element) => element.value, rebuild = false) =>
      $(id).addEventListener(event, () => change({ [key]: read($(id)) }, { rebuild }));
    const checked = (element) => element.checked;
    set("group", "change", "group", undefined, true);
    set("curve", "change", "curve", undefined, true);
    set("baseline", "change", "baseline", undefined, true);
    $("margin").addEventListener("input", () => { typing = true; });
    $("margin").addEventListener("blur", () => { typing = false; });
    $("margin").addEventListener("change", setMargin);
    $("metric").addEventListener("change", () => {
      const metric = $("metric").value;
      const sort = [metric, model.smallerIsBetter(metric) ? "asc" : "desc"];
      const margin = metric === defaults.metric ? defaults.margin : null; // it has the unit of the metric
      table.forget();
      change({ metric, margin, sort, up: metric, lastAxis: metric }, { rebuild: true });
    });
    for (const id of ["drawn", "over", "spread", "across", "colour", "up"]) set(id, "change", id);
    set("last-axis", "change", "lastAxis");
    set("smooth", "input", "smooth", (element) => Number(element.value));
    for (const id of ["xlog", "ylog", "sxlog", "sylog"]) set(id, "change", id, checked);
    $("search").addEventListener("input", () => {
      view.search = $("search").value;
      table.search(view.search);
      writeAddress();
    });
    $("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      setFilters([...view.filters, [$("filter-key").value, $("filter-how").value, $("filter-value").value]]);
      $("filter-value").value = "";
    });
    $("filter-key").addEventListener("change", suggest);
    $("filter-value").addEventListener("focus", suggest);
    $("table-box").addEventListener("click", pressed);
    $("table-box").addEventListener("change", ticked);
    $("link").addEventListener("click", copyLink);
    bindTabs();
    bindColumns();
    bindTheme();
  }

  // The list of columns closes by Escape, or by a press beside it.
  function bindColumns() {
    const menu = $("columns");
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.firstElementChild.focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
  }

  function bindTabs() {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    tabs.forEach((tab, at) => {
      tab.addEventListener("click", () => change({ tab: tab.dataset.tab }));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(at + step + tabs.length) % tabs.length];
        change({ tab: next.dataset.tab });
        next.focus();
      });
    });
  }

  function pressed(event) {
    const button = event.target.closest("button[data-act]");
    if (!button) return;
    const line = table.lineOf(button);
    if (button.dataset.act === "open") change({ open: line.runs[0].id });
    else change({ baseline: line.id === view.baseline ? "" : line.id }, { rebuild: true });
  }

  function ticked(event) {
    if (event.target.dataset.act !== "draw") return;
    const { id } = table.lineOf(event.target);
    const chosen = new Set(drawnLines().map((line) => line.id));
    if (event.target.checked) chosen.add(id);
    else chosen.delete(id);
    change({ selected: [...chosen] });
  }

  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link is copied.");
    } catch {
      say("Copy the address of this page: it holds the view.");
    }
  }

  const say = (text) => { $("state").textContent = text; };

  function bindTheme() {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const apply = () => {
      const chosen = $("theme").value;
      const dark = chosen ? chosen === "dark" : system.matches;
      document.documentElement.classList.toggle("dark", dark);
      document.documentElement.style.colorScheme = dark ? "dark" : "light";
      if (lines.length || globalThis.Plotly) showCharts();
      detail.show($("detail"), view);
    };
    $("theme").value = stored("theme");
    $("theme").addEventListener("change", () => {
      stored("theme", $("theme").value);
      apply();
    });
    system.addEventListener("change", apply);
    apply();
  }

  // What this browser keeps, where it may.
  function stored(key, value) {
    try {
      if (value !== undefined) localStorage.setItem(`compare-${key}`, value);
      return localStorage.getItem(`compare-${key}`) ?? "";
    } catch {
      return "";
    }
  }

  // ---- news ------------------------------------------------------------------------------------

  function showWarnings() {
    const warnings = model.warnings(view, lines);
    $("warnings").hidden = !warnings.length;
    $("warnings").firstElementChild.textContent =
      warnings.length === 1 ? "1 warning" : `${warnings.length} warnings`;
    $("warnings").lastElementChild.replaceChildren(...warnings.map((text) => node("li", { textContent: text })));
  }

  function showAll() {
    showTable();
    showControls();
    showState();
  }

  function showState() {
    const runs = model.runs();
    const training = runs.filter((run) => run.status === "running").length;
    const words = training ? `, ${training} training` : "";
    say(`${runs.length} ${runs.length === 1 ? "run" : "runs"}${words}${model.data.live ? "; this page follows them" : ""}`);
  }

  async function poll() {
    try {
      const answer = await fetch(`data?since=${encodeURIComponent(model.data.version)}`, {
        headers: { "If-None-Match": `"${model.data.version}"` }, cache: "no-store",
      });
      if (answer.status === 200) {
        model.take(await answer.json());
        refreshDefaults();
        showAll();
        if (view.open) detail.show($("detail"), view);
      } else if (answer.status === 304) showState();
      else throw new Error(`status ${answer.status}`);
    } catch {
      say("No answer: start the page again with python -m experiments.compare --serve");
    }
    setTimeout(poll, POLL_MS);
  }

  // The first runs may bring the first metric, curve or setting.
  function refreshDefaults() {
    const next = firstView(model.data.view ?? {});
    for (const [key, value] of Object.entries(next)) {
      const untouched = JSON.stringify(view[key]) === JSON.stringify(defaults[key]);
      if (untouched) view[key] = structuredClone(value);
    }
    defaults = next;
  }

  async function start() {
    model.take(JSON.parse(await unpack("data")));
    $("packed-data").remove();
    defaults = firstView(model.data.view ?? {});
    view = { ...structuredClone(defaults), ...readAddress() };
    await load("datatables");
    document.querySelector("main").hidden = false;
    table.start({
      view: () => view, isDrawn: (id) => places.has(id), drawn: tableChanged,
      sorted: (sort) => { if (sort && !updating) { view.sort = sort; writeAddress(); } },
      resized: (length) => { view.page = length; writeAddress(); },
    });
    detail.start($("detail"), { change, drawer: (draw) => { if (globalThis.Plotly) draw(); } });
    bind();
    showAll();
    performance.mark("table");
    setTimeout(finish, 0);
  }

  // Plotly is large: the table is there before it.
  async function finish() {
    addEventListener("hashchange", reread);
    if (model.data.live) setTimeout(poll, POLL_MS);
    await load("plotly");
    showCharts();
    detail.show($("detail"), view);
  }

  // Shows the view of the address.
  function reread() {
    view = { ...structuredClone(defaults), ...readAddress() };
    table.forget();
    showAll();
    detail.show($("detail"), view);
  }

  return { start, poll, reread, view: () => view, lines: () => lines, table, model, statistics, verdicts, charts };
})();
globalThis.comparePage = page;
page.start().catch((error) => {
  document.getElementById("state").textContent = `This page can't be shown: ${error.message}. `
    + "It needs a browser of 2023 or newer.";
  throw error;
});

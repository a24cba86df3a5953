// One run: how it ended, its settings and figures, its confusion matrix and its mistakes.
const detail = (() => {
  const { node } = table;
  let on = {};

  const rows = (pairs) =>
    node("table", { className: "pairs" }, node("tbody", {}, ...pairs.map(([name, value, mark]) =>
      node("tr", { className: mark ? "differs" : "" },
        node("th", { scope: "row", textContent: name }), node("td", { textContent: value })))));

  const part = (title, open, ...content) =>
    node("details", { open }, node("summary", { textContent: title }), ...content);

  function chooser(name, runs, chosen, none, act) {
    const select = node("select");
    if (none) select.append(new Option(none, ""));
    for (const run of runs) select.append(new Option(run.id, run.id));
    select.value = chosen ?? "";
    select.addEventListener("change", () => act(select.value));
    return node("label", {}, `${name} `, select);
  }

  function settingsOf(run) {
    const differing = new Set(model.data.differing);
    const keys = Object.keys(run.config).sort((a, b) => differing.has(b) - differing.has(a));
    return keys.map((key) => [key.replace("trainer.callbacks.", ""),
      model.setting(run.config[key]) || "none", differing.has(key)]);
  }

  const figuresOf = (run) =>
    Object.keys(run.summary).sort().map((key) => [model.withUnit(key), model.number(run.summary[key])]);

  const difference = (ours, theirs) => ({
    classes: ours.classes,
    counts: ours.counts.map((row, i) => row.map((value, j) => value - theirs.counts[i][j])),
  });

  const sameClasses = (a, b) => JSON.stringify(a?.classes) === JSON.stringify(b?.classes);

  function matrices(run, view) {
    const kinds = Object.keys(run.confusion);
    const box = node("div", { className: "matrices" });
    if (!kinds.length) {
      box.append(picture(run, "confusion_test.png", "confusion matrix")
        ?? note("No counts of a confusion matrix: python cli.py test writes confusion_test.json."));
      return { box, fill: () => {} };
    }
    const kind = kinds[0];
    const others = model.runs().filter((other) =>
      other !== run && sameClasses(other.confusion[kind], run.confusion[kind]));
    const other = others.find(({ id }) => id === view.versus);
    box.append(chooser("Subtract the matrix of", others, other?.id, "no other run", (id) => on.change({ versus: id })));
    const chart = node("div", { className: "matrix" });
    const matrix = other ? difference(run.confusion[kind], other.confusion[kind]) : run.confusion[kind];
    const title = other ? `${run.id} minus ${other.id}, ${kind} images` : `Counts on ${kind} images`;
    box.append(note(title), chart);
    return { box, fill: () => charts.confusion(chart, matrix, Boolean(other)) };
  }

  const note = (text) => node("p", { className: "note", textContent: text });

  // The picture of a run; null if it has none, or if this file lacks it.
  function picture(run, file, what) {
    if (!run.pictures.includes(file)) return null;
    const source = model.data.live
      ? `picture?${new URLSearchParams({ run: run.id, file })}`
      : model.bare(model.data.pictures[run.id])[file];
    return source ? node("img", { src: source, alt: `${what} of ${run.id}`, loading: "lazy" }) : null;
  }

  function mistakes(run) {
    const file = "mistakes_test.png";
    if (!run.pictures.includes(file)) return note("No picture of mistakes: python cli.py test draws it.");
    return picture(run, file, "most confident mistakes")
      ?? note(`This file has no room for ${file}; it is in ${run.folder}.`);
  }

  function fill(dialog, run, view) {
    const lines = model.lines(view.group);
    model.compare(lines, view);
    const line = lines.find(({ runs }) => runs.includes(run));
    const tests = model.outcomeRows(line, view);
    const close = node("button", { type: "button", className: "close", textContent: "Close" });
    close.addEventListener("click", () => dialog.close());
    const head = node("div", { className: "head" },
      node("h2", { id: "detail-title", textContent: run.id }), close);
    const choose = line.runs.length > 1
      ? [chooser(`Run of ${line.id}`, line.runs, run.id, "", (id) => on.change({ open: id }))] : [];
    const { box, fill: drawMatrix } = matrices(run, view);
    dialog.replaceChildren(head, ...choose, node("div", { className: "parts" },
      part("How it ended", true, rows(run.facts)),
      part("Summary", true, rows(figuresOf(run))),
      ...(tests.length ? [part(`${line.id} against the baseline`, true, rows(tests))] : []),
      part("Confusion matrix", true, box),
      part("Mistakes", true, mistakes(run)),
      part("Configuration: settings that differ first", true, rows(settingsOf(run)))));
    return drawMatrix;
  }

  // Opens the run of the view, or closes; redraws it when it changed.
  function show(dialog, view) {
    const run = model.data.runs.get(view.open);
    if (!run) {
      if (dialog.open) dialog.close();
      return;
    }
    const kept = [dialog.scrollTop, focusPlace(dialog)];
    const drawMatrix = fill(dialog, run, view);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = kept[0];
    if (kept[1] >= 0) dialog.querySelectorAll("button, select, summary")[kept[1]]?.focus({ preventScroll: true });
    on.drawer(drawMatrix);
  }

  const focusPlace = (dialog) =>
    [...dialog.querySelectorAll("button, select, summary")].indexOf(document.activeElement);

  function start(dialog, handlers) {
    on = handlers;
    dialog.addEventListener("close", () => on.change({ open: "", versus: "" }));
  }

  return { start, show };
})();

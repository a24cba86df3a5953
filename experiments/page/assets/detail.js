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
      box.append(node("p", { className: "note", textContent:
        "This run keeps no counts of a confusion matrix: an evaluation writes confusion_test.json." }));
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
    box.append(node("p", { className: "note", textContent: title }), chart);
    return { box, fill: () => charts.confusion(chart, matrix, Boolean(other)) };
  }

  function pictures(run) {
    const wanted = ["mistakes_test.png", ...(Object.keys(run.confusion).length ? [] : ["confusion_test.png"])];
    const found = wanted.filter((file) => run.pictures.includes(file));
    return found.map((file) => {
      const source = model.data.live
        ? `picture?${new URLSearchParams({ run: run.id, file })}`
        : model.data.pictures?.[run.id]?.[file];
      if (!source) {
        return node("p", { className: "note", textContent: `${file} is not in this page; it is in ${run.folder}` });
      }
      const what = file.startsWith("mistakes") ? "most confident mistakes" : "confusion matrix";
      return node("img", { src: source, alt: `${what} of ${run.id}`, loading: "lazy" });
    });
  }

  function fill(dialog, run, view) {
    const line = model.lines(view.group).find(({ runs }) => runs.includes(run));
    const close = node("button", { type: "button", className: "close", textContent: "Close" });
    close.addEventListener("click", () => dialog.close());
    const head = node("div", { className: "head" },
      node("h2", { id: "detail-title", textContent: run.id }), close);
    const choose = line.runs.length > 1
      ? [chooser(`Run of ${line.id}`, line.runs, run.id, "", (id) => on.change({ open: id }))] : [];
    const { box, fill: drawMatrix } = matrices(run, view);
    const images = pictures(run);
    dialog.replaceChildren(head, ...choose, node("div", { className: "parts" },
      part("How it ended", true, rows(run.facts)),
      part("Summary", true, rows(figuresOf(run))),
      part("Confusion matrix", true, box),
      part("Mistakes", true, ...(images.length ? images : [node("p", { className: "note", textContent: "No picture of mistakes: run cli.py test." })])),
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

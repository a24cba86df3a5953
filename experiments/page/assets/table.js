// The table: DataTables sorts, searches and turns pages; each cell is a node with text, never HTML.
const table = (() => {
  const PAGE = 25;
  const collator = new Intl.Collator("en", { numeric: true });
  let [current, shape, filters, columnsByKey, on] = [null, "", [], new Map(), {}];

  // Numbers before words, and nothing last in both directions.
  function ordered(a, b, sign) {
    const [left, right] = [rank(a), rank(b)];
    if (left !== right) return left === 2 || right === 2 ? left - right : sign * (left - right);
    return sign * (left === 0 ? a - b : collator.compare(a, b));
  }

  const rank = (value) => {
    if (value === null || value === undefined || value === "") return 2;
    return typeof value === "number" ? 0 : 1;
  };

  function node(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // DataTables may take any text for HTML, also to search or to measure it: it gets none as it is.
  const safe = (value) => (typeof value === "string"
    ? value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;") : value);

  const display = (column) => (line, type) => {
    const cell = column.cell(line);
    if (type === "display") return node("span", { textContent: cell.text, title: cell.title ?? cell.text });
    return safe(type === "sort" ? cell.sort : cell.text);
  };

  function nameCell(line, type) {
    if (type !== "display") return safe(line.id);
    const pinned = line.id === on.view().baseline;
    const pin = node("button", { type: "button", className: "pin", textContent: pinned ? "\u2605" : "\u2606" });
    pin.dataset.act = "pin";
    pin.setAttribute("aria-pressed", String(pinned));
    pin.setAttribute("aria-label", `baseline: ${line.id}`);
    pin.title = pinned ? "This line is the baseline; press to unpin it" : "Make this line the baseline";
    const open = node("button", { type: "button", className: "open", textContent: line.id, title: line.id });
    open.dataset.act = "open";
    return node("span", { className: "name" }, pin, open);
  }

  function drawCell(line, type) {
    if (type !== "display") return "";
    const box = node("input", { type: "checkbox", checked: on.isDrawn(line.id) });
    box.dataset.act = "draw";
    box.setAttribute("aria-label", `draw ${line.id}`);
    return node("span", { className: "swatch" }, box);
  }

  function head(columns) {
    const titles = ["", "name", ...columns.map((column) => column.title)];
    const cells = titles.map((title) => node("th", { textContent: title, scope: "col" }));
    cells[0].append(node("span", { className: "hidden", textContent: "drawn in the chart" }));
    return node("thead", {}, node("tr", {}, ...cells));
  }

  function definitions(columns) {
    const own = columns.map((column) => ({
      data: null, type: "cell", orderSequence: column.numeric || column.tested ? ["desc", "asc"] : ["asc", "desc"],
      render: (line, type) => display(column)(line, type),
      className: [column.numeric ? "number" : "", column.tested ? "tested" : "", column.key === "note" ? "words" : ""].join(" "),
    }));
    return [
      { data: null, orderable: false, searchable: false, type: "cell", render: drawCell },
      { data: null, type: "cell", render: nameCell, orderSequence: ["asc", "desc"] },
      ...own,
    ];
  }

  function orderOf(view, columns) {
    const [key, direction] = view.sort;
    const at = key === "name" ? 1 : columns.findIndex((column) => column.key === key) + 2;
    return at > 0 && (at !== 1 || key === "name") ? [[at, direction]] : [];
  }

  function create(box, lines, columns, view) {
    const element = node("table", { className: "compact hover order-column nowrap" }, head(columns));
    box.replaceChildren(element);
    current = new DataTable(element, {
      data: lines, columns: definitions(columns), order: orderOf(view, columns),
      autoWidth: false, deferRender: true, pageLength: view.page, lengthMenu: lengths(),
      search: { search: view.search }, orderMulti: false,
      layout: { topStart: null, topEnd: null, bottomStart: ["pageLength", "info"], bottomEnd: "paging" },
      language: {
        emptyTable: "No runs yet. Fit one with: python cli.py fit --config configs/mlp.yaml",
        zeroRecords: "No line passes the search and the filters.",
        info: "_START_ to _END_ of _TOTAL_ lines", infoEmpty: "no lines",
        infoFiltered: "(of _MAX_)", lengthMenu: "_MENU_ lines a page",
      },
      createdRow: (row, line) => row.classList.toggle("baseline", line.id === view.baseline),
    });
    current.search.fixed("filters", (_, line) => passes(line));
    current.on("order", () => on.sorted(sortedBy(columns)));
    current.on("draw", () => on.drawn());
    current.on("length", (_, __, length) => on.resized(length));
    current.draw();
  }

  const lengths = () => [[10, PAGE, 100, -1], [10, PAGE, 100, "all"]];
  const passes = (line) => filters.every((filter) => model.passes(line, columnsByKey, filter));

  function sortedBy(columns) {
    const [first] = current.order();
    if (!first) return null;
    const [at, direction] = Array.isArray(first) ? first : [first.idx, first.dir];
    return [at === 1 ? "name" : columns[at - 2]?.key, direction];
  }

  // Shows lines; a table with the same columns keeps its page, its focus and its place.
  function show(box, lines, columns, view) {
    columnsByKey = new Map(columns.map((column) => [column.key, column]));
    filters = view.filters;
    const wanted = JSON.stringify([columns.map((column) => column.title), view.group, view.baseline]);
    const focus = focused();
    if (current && wanted === shape) {
      current.clear().rows.add(lines).draw(false);
    } else {
      current?.destroy();
      shape = wanted;
      create(box, lines, columns, view);
    }
    refocus(focus);
  }

  // The next `show` makes the table anew, with the search and the order of the view.
  function forget() {
    shape = "";
  }

  function focused() {
    const act = current && document.activeElement?.dataset?.act;
    const line = act && lineOf(document.activeElement);
    return line ? [line.id, act] : null;
  }

  function refocus(focus) {
    if (!focus) return;
    const [id, act] = focus;
    const row = current.rows((_, line) => line.id === id).nodes()[0];
    row?.querySelector(`[data-act="${act}"]`)?.focus({ preventScroll: true });
  }

  const lineOf = (element) => current.row(element.closest("tr")).data();
  const shown = () => (current ? current.rows({ search: "applied", order: "applied" }).data().toArray() : []);

  function search(text) {
    current.search(text).draw();
  }

  function filter(wanted) {
    filters = wanted;
    current.draw();
  }

  // Marks which lines are drawn, with their colours.
  function mark(colours) {
    current?.rows({ page: "current" }).every(function markRow() {
      const box = this.node()?.querySelector("input[data-act=draw]");
      if (!box) return;
      const colour = colours.get(this.data().id);
      box.checked = colour !== undefined;
      box.parentElement.style.setProperty("--line", colour ?? "transparent");
    });
  }

  function start(handlers) {
    on = handlers;
    const types = DataTable.ext.type;
    types.order["cell-asc"] = (a, b) => ordered(a, b, 1);
    types.order["cell-desc"] = (a, b) => ordered(a, b, -1);
  }

  return { start, show, forget, shown, search, filter, mark, lineOf, node, ordered, PAGE };
})();

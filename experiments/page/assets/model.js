// What the page knows of the runs: lines, columns, units and words. Nothing here touches the page.
const model = (() => {
  const { mean, sd, difference, FEWEST } = statistics;
  const BY_EXPERIMENT = "experiment";
  const BY_RUN = "run";
  const MANY = 5; // more lines on one test set are warned of, as in experiments/analysis/chance.py
  const ALWAYS = [BY_EXPERIMENT, BY_RUN, "status", "machine", "seed"];
  const data = { runs: new Map(), order: [], lines: {}, labels: {}, differing: [], settings: [] };

  // A record without names of its own: a key of a run may be "constructor" or "__proto__".
  const bare = (record) => Object.assign(Object.create(null), record);
  const RECORDS = ["config", "summary", "partial", "curves", "confusion"];

  // Takes what the server or the file says; only changed runs come again.
  function take(news) {
    for (const run of news.runs) {
      for (const name of RECORDS) run[name] = bare(run[name]);
      data.runs.set(run.id, run);
    }
    const kept = new Set(news.order);
    for (const id of data.runs.keys()) if (!kept.has(id)) data.runs.delete(id);
    const { runs, ...others } = news;
    Object.assign(data, others);
    for (const name of ["lines", "labels", "pictures", "better", "margins"]) data[name] = bare(data[name]);
  }

  const runs = () => data.order.map((id) => data.runs.get(id)).filter(Boolean);
  const smallerIsBetter = (metric) => data.better[metric] === "lower";
  // The least difference that matters: of the view, or the one of the metric; null if it has none.
  const margin = (view) => view.margin ?? data.margins[view.metric] ?? null;
  const label = (key) => data.labels[key] ?? key;

  const UNITS = bare({
    acc: "share of images", loss: "nats", seconds: "s", images_per_s: "images/s",
    peak_gpu_mib: "MiB", flops: "FLOP",
  });
  const unit = (metric) => UNITS[metric.replace(/.*\//, "")] ?? "";

  const withUnit = (metric) => metric + (unit(metric) ? ` (${unit(metric)})` : "");

  // Decimals that leave about four digits of a value.
  function decimals(value) {
    const size = Math.abs(value);
    if (size >= 1000) return 0;
    return size >= 1 ? 3 - Math.floor(Math.log10(size)) : 4;
  }

  // A figure in four digits, or with as many decimals as another one.
  function number(value, like = value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    const size = Math.abs(like);
    if (size >= 1e9 || (size < 1e-3 && size > 0)) return value.toExponential(3);
    if (Number.isInteger(value) && like === value) return value.toLocaleString("en");
    const digits = decimals(like);
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  // A setting is shown as it was typed, not rounded.
  function setting(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    const small = value !== 0 && Math.abs(value) < 1e-4;
    return small ? String(Number(value)).replace(/e-0?/, "e-") : String(value);
  }

  const signed = (value, like) => (value < 0 ? "\u2212" : "+") + number(Math.abs(value), like);

  function keyOf(run, key) {
    if (key === BY_EXPERIMENT) return data.lines[run.id] ?? run.id;
    if (key === BY_RUN) return run.id;
    if (key === "status" || key === "machine" || key === "seed") return String(run[key] ?? "");
    return setting(run.config[key]);
  }

  // Lines: runs with the same value of a key.
  function lines(key) {
    const found = new Map();
    for (const run of runs()) {
      const name = keyOf(run, key) || "(none)";
      if (!found.has(name)) found.set(name, { id: name, runs: [] });
      found.get(name).runs.push(run);
    }
    return [...found.values()];
  }

  // A value for each seed; repeats of a seed count once, by their mean, as they are not independent.
  function bySeed(line, of) {
    const found = new Map();
    line.runs.forEach((run, position) => {
      const value = of(run);
      if (typeof value !== "number") return;
      const seed = run.seed ?? -position - 1;
      found.set(seed, [...(found.get(seed) ?? []), value]);
    });
    return new Map([...found].map(([seed, values]) => [seed, mean(values)]));
  }

  const figure = (metric) => (run) => run.summary[metric];
  const bestValue = (curve) => (run) => run.curves[curve]?.best?.[1];
  const bestStep = (curve) => (run) => run.curves[curve]?.best?.[0];
  const lastValue = (curve) => (run) => run.curves[curve]?.last;

  function spread(values) {
    const found = [...values.values()];
    if (!found.length) return { text: "", sort: null };
    const middle = mean(found);
    const text = number(middle, found.length > 1 && Number.isInteger(middle) ? middle + 1e-9 : middle)
      + (found.length > 1 ? ` \u00b1 ${number(sd(found), middle)}` : "");
    return { text, sort: middle };
  }

  function range(values) {
    const found = [...values.values()];
    if (!found.length) return { text: "", sort: null };
    const [low, high] = [Math.min(...found), Math.max(...found)];
    const text = low === high ? number(low) : `${number(low)} to ${number(high)}`;
    return { text, sort: mean(found) };
  }

  function counted(values) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  function status(line) {
    const counts = counted(line.runs.map((run) => run.status));
    const text = counts.length === 1 ? counts[0][0] : counts.map(([s, n]) => `${n} ${s}`).join(", ");
    return { text, sort: text };
  }

  function settingOf(line, key) {
    const values = counted(line.runs.map((run) => setting(run.config[key]))).map(([v]) => v);
    if (values.length === 1) {
      const value = line.runs[0].config[key];
      return { text: values[0], sort: value ?? null };
    }
    const text = values.length > 3 ? `${values.length} values` : values.join(" | ");
    return { text, sort: text };
  }

  function note(line) {
    const notes = new Set(line.runs.map((run) => run.note).filter(Boolean));
    for (const run of line.runs) {
      for (const [stage, part] of Object.entries(run.partial)) {
        notes.add(`${run.id}: ${stage} is of ${part} images, not compared`);
      }
    }
    const text = [...notes].join("; ");
    return { text, sort: text };
  }

  function differing(everything) {
    return everything ? [...new Set([...data.settings, ...data.differing])] : data.differing;
  }

  const metrics = () => [...new Set(runs().flatMap((run) => Object.keys(run.summary)))].sort();
  const curves = () => [...new Set(runs().flatMap((run) => Object.keys(run.curves)))].sort();

  // The columns of the table: a key, a heading, and the cell of a line.
  function columns(view) {
    const [metric, curve] = [view.metric, view.curve];
    const found = [
      { key: "status", title: "status", cell: status },
      { key: "n", title: "n", numeric: true, cell: (line) => count(line, metric) },
      figureColumn(metric),
    ];
    if (view.baseline) found.push(testColumn);
    if (curve) found.push(...curveColumns(curve));
    found.push(...view.metrics.filter((name) => name !== metric).map(figureColumn));
    const keys = differing(view.everything).filter((key) => key !== view.group);
    found.push(...keys.map((key) => settingColumn(key)));
    return [...found, { key: "note", title: "note", cell: note }];
  }

  // In the table, only a unit that the name does not say.
  const heading = (metric) => (["s", "MiB"].includes(unit(metric)) ? withUnit(metric) : metric);

  const figureColumn = (metric) => ({
    key: metric, title: heading(metric), numeric: true,
    cell: (line) => spread(bySeed(line, figure(metric))),
  });

  const settingColumn = (key) => ({
    key, title: label(key), setting: true,
    numeric: runs().every((run) => ["number", "undefined"].includes(typeof (run.config[key] ?? undefined))),
    cell: (line) => settingOf(line, key),
  });

  const testColumn = {
    key: "difference", title: "difference to baseline", tested: true, cell: (line) => line.gap,
  };

  const curveColumns = (curve) => [
    { key: `best ${curve}`, title: `best ${curve}`, numeric: true,
      cell: (line) => spread(bySeed(line, bestValue(curve))) },
    { key: "at step", title: "at step", numeric: true,
      cell: (line) => range(bySeed(line, bestStep(curve))) },
    { key: `last ${curve}`, title: `last ${curve}`, numeric: true,
      cell: (line) => spread(bySeed(line, lastValue(curve))) },
  ];

  function count(line, metric) {
    const have = line.runs.filter((run) => typeof run.summary[metric] === "number").length;
    const all = line.runs.length;
    return { text: have === all || !have ? String(all) : `${have} of ${all}`, sort: all };
  }

  // Tests each line against the baseline. The family is all lines: one of the best alone would be none.
  function compare(found, view) {
    const base = found.find((line) => line.id === view.baseline);
    const theirs = base ? bySeed(base, figure(view.metric)) : new Map();
    for (const line of found) {
      line.test = null;
      line.gap = gapTo(line, base, theirs, view);
    }
    const results = verdicts.outcomes(found.map(({ test }) => test), data.better[view.metric], margin(view));
    found.forEach((line, i) => {
      line.outcome = results[i];
      if (line.outcome) line.gap = tested(line, view.metric);
    });
    return results.filter(Boolean).length;
  }

  function tested(line, metric) {
    const { gap, outcome, runs: all } = line;
    const have = all.filter((run) => typeof run.summary[metric] === "number").length;
    const of = have === all.length ? "" : `; of ${have} of ${all.length} runs`;
    const text = `${gap.text}: ${verdicts.words(outcome)}, ${verdicts.figures(outcome)}${of}`;
    return { ...gap, text, title: details(text, outcome) };
  }

  function details(text, { difference: found, family, margin: least }) {
    const lines = [text, `95 % interval of this line alone; ${found.test}, n = ${found.n}`,
      `p and TOST p are corrected by Holm over ${family} ${family === 1 ? "line" : "lines"}`];
    return [...lines, least === null ? "no margin: equivalence is not tested" : `margin \u00b1${least}`].join("\n");
  }

  // A line's test against the baseline, in rows for its run; none without a test.
  function outcomeRows({ outcome, gap }, { baseline }) {
    if (!outcome) return [];
    const { difference: found, family } = outcome;
    const p = (value) => value.toPrecision(3);
    const rows = [
      ["verdict", verdicts.words(outcome)], ["baseline", baseline],
      ["difference", gap.words(found.mean)],
      ["95 % interval", `${gap.words(found.low)} to ${gap.words(found.high)}`],
      ["test", `${found.test}, n = ${found.n}`], ["p", p(found.p)],
      [`p by Holm over ${family}`, p(outcome.holm)],
    ];
    if (outcome.margin === null) return [...rows, ["margin", "none: equivalence is not tested"]];
    return [...rows, ["margin", `\u00b1${outcome.margin}`], ["TOST p", p(outcome.equivalence)],
      [`TOST p by Holm over ${family}`, p(outcome.equivalenceHolm)]];
  }

  function gapTo(line, base, theirs, view) {
    if (line === base) return { text: "(baseline)", sort: 0 };
    const ours = bySeed(line, figure(view.metric));
    if (!ours.size || !theirs.size) return { text: "", sort: null };
    const middle = mean([...theirs.values()]);
    const sort = mean([...ours.values()]) - middle;
    const words = (value) => signed(value, middle + 1e-9);
    const why = untested(line, base, view.metric);
    line.test = why ? null : difference(ours, theirs);
    if (!line.test?.error) {
      line.test = null;
      const few = Math.min(ours.size, theirs.size) < FEWEST;
      const reason = why || (few ? `fewer than ${FEWEST} seeds` : "no spread over the seeds");
      return { text: `${words(sort)}, ${reason}: not tested`, sort };
    }
    return { text: `${words(sort)} (${words(line.test.low)} to ${words(line.test.high)})`, sort, words };
  }

  // Why a line is not tested whatever its figures are; empty if it is.
  function untested(line, base, metric) {
    const [own, other] = [dataOf(line), dataOf(base)];
    if (own.length > 1 || other.length > 1) return "on mixed data";
    if (own[0] !== other[0]) return "on other data";
    for (const [found, of] of [[line, ""], [base, " of the baseline"]]) {
      const count = found.runs.filter((run) => run.unfinished
        && typeof run.summary[metric] === "number").length;
      if (count) return `${count} of ${found.runs.length} runs${of} not finished`;
    }
    return "";
  }

  const dataOf = (line) => counted(line.runs.map((run) => run.data)).map(([name]) => name);

  // Reasons to doubt what is shown. Those of the metric that the page began with came with the runs.
  function warnings(view, found) {
    const isTest = /(^|[/_.-])(test|eval)([/_.-]|$)/i.test(view.metric);
    const tested = found.filter((line) => bySeed(line, figure(view.metric)).size);
    if (!isTest || view.metric === data.metric || tested.length <= MANY) return data.warnings;
    return [...data.warnings, `${tested.length} lines are compared on the same test images: the best `
      + "looks better than it is by chance; choose by figures of validation images"];
  }

  // Settings that differ within a line: the line mixes experiments.
  function mixed(found) {
    const keys = new Set();
    for (const line of found) {
      for (const key of data.differing) {
        if (new Set(line.runs.map((run) => setting(run.config[key]))).size > 1) keys.add(key);
      }
    }
    return [...keys];
  }

  const machines = (found) => [...new Set(found.flatMap((line) => line.runs.map((run) => run.machine)))]
    .filter(Boolean);

  // Whether a line passes a filter: [key, comparison, value].
  function passes(line, columnsByKey, [key, how, wanted]) {
    const cell = key === "name" ? { text: line.id, sort: line.id } : columnsByKey.get(key)?.cell(line);
    if (!cell) return true;
    const text = cell.text.toLowerCase();
    const small = wanted.toLowerCase();
    const [value, limit] = [Number(cell.sort), Number(wanted)];
    const isNumber = cell.sort !== null && cell.sort !== "" && !Number.isNaN(value) && wanted.trim() !== "";
    const same = text === small || (isNumber && value === limit);
    const tests = bare({
      "=": () => same, "!=": () => !same, "~": () => text.includes(small),
      ">": () => isNumber && value > limit, "<": () => isNumber && value < limit,
    });
    return tests[how]?.() ?? true;
  }

  return {
    ALWAYS, BY_EXPERIMENT, BY_RUN, warnings, data, bare, take, runs, lines, columns, compare, outcomeRows, margin, mixed,
    machines, passes, label, number, setting, signed, unit, withUnit, smallerIsBetter, metrics, curves,
    differing, bySeed, figure, counted,
  };
})();

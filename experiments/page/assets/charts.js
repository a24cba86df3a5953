// The charts: Plotly draws them. It reads some HTML in texts, so each text is escaped for it.
const charts = (() => {
  const { bandAtPoints, bandBetween, smoothed } = statistics;
  // Okabe and Ito's colours, as in the project's other figures.
  const LIGHT = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#777777"];
  const DARK = ["#4aa3e0", "#E69F00", "#2fc79a", "#f07f3c", "#e29bc6", "#a8dcf7", "#b0b0b0"];
  const isDark = () => document.documentElement.classList.contains("dark");
  const DASHES = ["solid", "dash", "dot"];
  const MOST = LIGHT.length * DASHES.length;
  const HEIGHT = 420;
  const AXES = {
    step: "optimiser steps", epoch: "epochs", images: "training images", seconds: "seconds of work",
    compute: "training compute (FLOP)",
  };

  const escape = (text) =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const shortened = (text, most = 40) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
  const words = (text, most) => escape(shortened(String(text), most));
  const style = (place) => ({
    color: (isDark() ? DARK : LIGHT)[place % LIGHT.length],
    dash: DASHES[Math.floor(place / LIGHT.length) % DASHES.length],
  });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function layout(more) {
    const axis = {
      gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--border"),
      automargin: true, exponentformat: "power", separatethousands: true,
    };
    const { xaxis, yaxis, ...others } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: HEIGHT,
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--text") },
      margin: { l: 60, r: 20, t: 12, b: 50 }, showlegend: false, hovermode: "closest",
      hoverlabel: { bgcolor: colour("--raised"), font: { color: colour("--text") }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--text") },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
    };
  }

  const CONFIG = {
    displaylogo: false, responsive: true, doubleClick: "reset",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "svg", filename: "runs" },
  };

  function draw(box, traces, more) {
    const found = layout(more);
    if (!traces.some((trace) => trace.x.length)) {
      found.xaxis.visible = false;
      found.yaxis.visible = false;
    }
    return Plotly.react(box, traces, found, CONFIG);
  }

  // ---- curves ----------------------------------------------------------------------------------

  // The points of a run's curve over an axis; null if the run does not know the axis.
  function pointsOf(run, metric, over, weight) {
    const curve = run.curves[metric];
    if (!curve) return null;
    const axes = run.axes[curve.axes];
    const x = placesOf(run, axes, over);
    return x && { key: axes.step, x, y: smoothed(curve.y, weight) };
  }

  function placesOf(run, axes, over) {
    if (over === "step" || over === "seconds") return axes[over] ?? null;
    const scale = {
      images: run.images_per_step, epoch: run.images_per_step / run.images_per_epoch,
      compute: run.flops_per_step,
    }[over];
    if (Number.isFinite(scale) && scale > 0) return axes.step.map((step) => step * scale);
    return over === "epoch" ? axes.epoch ?? null : null;
  }

  // Only points that a logarithmic axis can show.
  function above(curve, view) {
    const kept = curve.x.map((x, i) => (!view.xlog || x > 0) && (!view.ylog || curve.y[i] > 0));
    const pick = (values) => values?.filter((_, i) => kept[i]);
    return { x: pick(curve.x), y: pick(curve.y), sd: pick(curve.sd), key: pick(curve.key) };
  }

  function curvesOf(line, view) {
    const known = line.runs.map((run) => [run, pointsOf(run, view.drawn, view.over, view.smooth)]);
    return known.filter(([, points]) => points?.x.length).map(([run, points]) => [run, above(points, view)]);
  }

  function lineTraces(line, place, view) {
    const found = curvesOf(line, view);
    if (!found.length) return [];
    if (view.spread === "runs") return found.map(([run, curve]) => trace(curve, run.id, place, 1.3));
    const curves = found.map(([, curve]) => curve);
    const band = view.over === "seconds" && curves.length > 1 ? bandBetween(curves) : bandAtPoints(curves);
    const name = `${line.id} (n = ${curves.length})`;
    const shade = curves.length > 1 ? [area(band, place, view)] : [];
    return [...shade, trace(band, name, place, 2)];
  }

  function trace(curve, name, place, width) {
    const lone = curve.x.length === 1;
    return {
      x: curve.x, y: curve.y, meta: words(name, 60), mode: lone ? "markers" : "lines", type: "scatter",
      line: { ...style(place), width }, marker: { color: style(place).color, size: 8 },
      hovertemplate: "%{meta}<br>%{x:,.6~g}: %{y:.4f}<extra></extra>",
    };
  }

  function area(band, place, view) {
    const lowest = view.ylog ? Math.min(...band.y) / 10 : -Infinity;
    const low = band.y.map((y, i) => Math.max(y - band.sd[i], lowest));
    const high = band.y.map((y, i) => y + band.sd[i]);
    return {
      x: [...band.x, ...[...band.x].reverse()], y: [...high, ...low.reverse()], fill: "toself",
      fillcolor: `${style(place).color}33`, line: { width: 0 }, mode: "lines", type: "scatter",
      hoverinfo: "skip",
    };
  }

  function curves(box, lines, places, view) {
    const traces = lines.flatMap((line) => lineTraces(line, places.get(line.id), view));
    const smooth = view.smooth ? `, smoothed (${view.smooth})` : "";
    draw(box, traces, {
      uirevision: JSON.stringify([view.drawn, view.over, view.xlog, view.ylog]),
      xaxis: {
        title: { text: AXES[view.over] }, type: view.xlog ? "log" : "linear",
        exponentformat: view.over === "compute" ? "SI" : "power", // 70G, not 7 x 10^10
      },
      yaxis: {
        title: { text: words(model.withUnit(view.drawn) + smooth, 60) },
        type: view.ylog ? "log" : "linear",
      },
      annotations: traces.length ? [] : [nothing(view)],
    });
    return traces.length;
  }

  function nothing(view) {
    const reason = view.over === "compute"
      ? "no drawn run has train/flops in its record"
      : `no drawn run has this curve over ${AXES[view.over]}`;
    return empty(reason);
  }

  const empty = (text) => ({
    text: escape(text), showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5,
    font: { size: 15, color: colour("--soft") },
  });

  // ---- a setting against a metric --------------------------------------------------------------

  function scatter(box, runs, view) {
    const points = runs
      .map((run) => ({ run, x: run.config[view.across], y: run.summary[view.up] }))
      .filter(({ x, y }) => x !== null && x !== undefined && typeof y === "number");
    const numeric = points.every(({ x }) => typeof x === "number");
    const groups = grouped(points, ({ run }) => colourOf(run, view));
    const names = numeric ? [] : categories(points.map(({ x }) => x));
    const place = (x, i) => (numeric ? x : names.indexOf(model.setting(x)) + apart(i));
    const traces = [...groups].map(([name, members], at) => dots(name, members, at, place));
    draw(box, traces, {
      showlegend: groups.size > 1, legend: { orientation: "h", y: -0.22, itemsizing: "constant" },
      height: HEIGHT + (groups.size > 1 ? 60 : 0),
      xaxis: {
        title: { text: words(model.label(view.across), 60) },
        type: numeric && view.sxlog ? "log" : "linear", ...(numeric ? {} : ticksOf(names)),
      },
      yaxis: { title: { text: words(model.withUnit(view.up), 60) }, type: view.sylog ? "log" : "linear" },
      annotations: points.length ? [] : [empty("no run has both this setting and this metric")],
    });
  }

  function grouped(values, keyOf) {
    const found = new Map();
    for (const value of values) found.set(keyOf(value), [...(found.get(keyOf(value)) ?? []), value]);
    return found;
  }

  const colourOf = (run, view) => (view.colour ? model.setting(run.config[view.colour]) || "(none)" : "");

  const categories = (values) => [...new Set(values.map(model.setting))].sort();
  const ticksOf = (names) => ({
    tickvals: names.map((_, i) => i), ticktext: names.map((name) => words(name, 30)),
    range: [-0.5, names.length - 0.5],
  });
  // Marks of one category lie side by side, always at the same places.
  const apart = (i) => (((i * 7) % 11) - 5) / 40;

  const dots = (name, members, place, placeOf) => ({
    x: members.map(({ x }, i) => placeOf(x, i)),
    y: members.map(({ y }) => y),
    customdata: members.map(({ run, x }) => `${words(run.id, 60)}<br>${words(model.setting(x), 40)}`),
    name: words(name, 40), type: "scatter", mode: "markers",
    marker: { color: style(place).color, size: 8, opacity: 0.75, symbol: place >= LIGHT.length ? "x" : "circle" },
    hovertemplate: "%{customdata}: %{y:.4f}<extra></extra>",
  });

  // ---- parallel coordinates: lines of the ordinary kind, as Plotly's own kind needs eval ----------

  const SHADES = 12;
  const MISSING = -0.12; // where runs without the setting lie
  const AXIS_WIDTH = 95; // pixels that a setting needs
  const fitting = (box) => Math.max(2, Math.floor(box.clientWidth / AXIS_WIDTH) - 2);

  function parallel(box, runs, view) {
    const scored = runs.filter((run) => typeof run.summary[view.lastAxis] === "number");
    const keys = model.data.differing.slice(0, fitting(box));
    const axes = [
      ...keys.map((key) => axisOf(model.label(key), scored.map((run) => run.config[key] ?? null))),
      axisOf(model.withUnit(view.lastAxis), scored.map((run) => run.summary[view.lastAxis])),
    ];
    const heights = axes[axes.length - 1].places;
    const traces = Array.from({ length: SHADES }, (_, shade) => polyline(scored, axes, heights, shade));
    draw(box, traces, {
      height: HEIGHT + 40, margin: { l: 90, r: 30, t: 20, b: 100 },
      xaxis: {
        tickvals: axes.map((_, i) => i), ticktext: axes.map((axis) => words(axis.label, 26)),
        range: [-0.3, axes.length - 0.7], showgrid: false, zeroline: false, tickangle: -25,
        fixedrange: true,
      },
      yaxis: { visible: false, range: [MISSING - 0.05, 1.06], fixedrange: true },
      shapes: axes.map((_, i) => ({
        type: "line", x0: i, x1: i, y0: 0, y1: 1, layer: "below", line: { color: colour("--soft"), width: 1 },
      })),
      annotations: scored.length ? axes.flatMap(ticks) : [empty("no run has this metric")],
    });
  }

  // An axis: where each run lies between 0 and 1, and the words beside it.
  function axisOf(label, values) {
    const known = values.filter((value) => value !== null);
    const numeric = known.length > 0 && known.every((value) => typeof value === "number");
    return numeric ? numericAxis(label, values, known) : categoryAxis(label, values);
  }

  function numericAxis(label, values, known) {
    const [least, most] = [Math.min(...known), Math.max(...known)];
    const log = least > 0 && most / least >= 50; // rates span decades
    const scale = log ? Math.log : (value) => value;
    const [low, high] = [scale(least), scale(most)];
    const place = (value) => (high > low ? (scale(value) - low) / (high - low) : 0.5);
    const between = log ? Math.sqrt(least * most) : (least + most) / 2;
    const different = new Set(known);
    const marks = different.size <= 6 ? [...different] : [least, between, most];
    return {
      label: label + (log ? ", log" : ""), places: values.map((v) => (v === null ? MISSING : place(v))),
      texts: values.map((value) => model.setting(value) || "none"),
      marks: [
        ...marks.map((value) => [place(value), different.size <= 6 ? model.setting(value) : model.number(value)]),
        ...(known.length < values.length ? [[MISSING, "none"]] : []),
      ],
    };
  }

  function categoryAxis(label, values) {
    const texts = values.map((value) => model.setting(value) || "none");
    const names = [...new Set(texts)].sort();
    const place = (name) => (names.length > 1 ? names.indexOf(name) / (names.length - 1) : 0.5);
    const every = Math.ceil(names.length / 12);
    return {
      label, places: texts.map(place), texts,
      marks: names.filter((_, i) => i % every === 0).map((name) => [place(name), name]),
    };
  }

  const ticks = (axis, at) =>
    axis.marks.map(([y, text]) => ({
      x: at, y, text: words(text, 16), showarrow: false, xanchor: "right", xshift: -4,
      font: { size: 11, color: colour("--text") }, bgcolor: colour("--back"), opacity: 0.85, borderpad: 1,
    }));

  function polyline(runs, axes, heights, shade) {
    const trace_ = { x: [], y: [], customdata: [] };
    runs.forEach((run, i) => {
      if (Math.min(SHADES - 1, Math.floor(heights[i] * SHADES)) !== shade) return;
      axes.forEach((axis, at) => {
        trace_.x.push(at);
        trace_.y.push(axis.places[i]);
        trace_.customdata.push(`${words(run.id, 50)}<br>${words(axis.label, 40)}: ${words(axis.texts[i], 40)}`);
      });
      trace_.x.push(null);
      trace_.y.push(null);
      trace_.customdata.push("");
    });
    return {
      ...trace_, type: "scatter", mode: "lines", opacity: 0.7,
      line: { width: 1.4, color: shadeColour(shade / (SHADES - 1)) },
      hovertemplate: "%{customdata}<extra></extra>",
    };
  }

  // From blue for the lowest to orange for the highest.
  function shadeColour(part) {
    const [from, to] = [[0, 114, 178], [230, 159, 0]];
    return `rgb(${from.map((value, i) => Math.round(value + part * (to[i] - value))).join()})`;
  }

  // ---- confusion matrices ----------------------------------------------------------------------

  function confusion(box, matrix, signed) {
    const classes = matrix.classes.map((name) => words(name, 14));
    const few = classes.length <= 20;
    const most = Math.max(1, ...matrix.counts.flat().map(Math.abs));
    const text = (value) => (signed && value > 0 ? `+${value}` : String(value)).replace("-", "\u2212");
    const places = classes.map((_, i) => i);
    const axis = { tickvals: places, ticktext: classes, automargin: true, showgrid: false, zeroline: false };
    const ticked = few ? axis : { ...axis, showticklabels: false };
    const size = Math.min(box.clientWidth || 600, 640);
    const trace_ = {
      type: "heatmap", z: matrix.counts, x: places, y: places, zmin: signed ? -most : 0, zmax: most,
      colorscale: signed ? DIVERGING() : SEQUENTIAL(), showscale: !few,
      text: matrix.counts.map((row) => row.map((value) => (few && value ? text(value) : ""))),
      texttemplate: few && size > 420 ? "%{text}" : "",
      customdata: matrix.counts.map((row, i) => row.map((v, j) => `true ${classes[i]}, predicted ${classes[j]}: ${text(v)}`)),
      hovertemplate: "%{customdata}<extra></extra>", xgap: 1, ygap: 1,
    };
    return draw(box, [trace_], {
      height: size, width: size, margin: { l: 90, r: 10, t: 10, b: 90 },
      xaxis: { ...ticked, title: { text: "predicted class", standoff: 8 }, tickangle: -45 },
      yaxis: { ...ticked, title: { text: "true class", standoff: 8 }, autorange: "reversed" },
    });
  }

  const SEQUENTIAL = () => [[0, colour("--raised")], [1, "#0072B2"]];
  const DIVERGING = () => [[0, "#D55E00"], [0.5, colour("--raised")], [1, "#0072B2"]];

  return { curves, scatter, parallel, confusion, escape, style, fitting, MOST };
})();

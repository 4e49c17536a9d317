// SPDX-License-Identifier: Apache-2.0
// Plots are drawn for the width that they will have, so their text keeps its size on a phone.
const isNarrow = window.innerWidth < 640;
const plotWidth = isNarrow ? 360 : 560;
const hues = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a05195", "#6b8e23", "#b8860b"];

const ceilTo = (value, step) => Math.ceil(value / step - 1e-9) * step;
/** 1, 2 or 5 times a power of ten, for about `count` steps. */
function niceStep(most, count) {
  const power = 10 ** Math.floor(Math.log10(most / count));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => most / step <= count);
}
const milliseconds = (value) => (value >= 1000 ? `${+(value / 1000).toFixed(value >= 10000 ? 0 : 1)} s` : `${+value.toPrecision(3)} ms`);

/** A frame with a linear axis from 0 across and a logarithmic one up, which begins at `least`: what lies below is drawn there. */
function logFrame({ maxX, most, least, textX, nameX, nameY, label, bound: limit }) {
  const w = plotWidth, h = 360, left = 78, right = 20, top = 18, bottom = 48;
  const low10 = Math.log10(least), top10 = Math.log10(Math.max(most, least * 10));
  const x = (value) => left + (w - left - right) * Math.min(1, value / maxX);
  const y = (value) => h - bottom - 16 - (h - top - bottom - 16) * (Math.log10(Math.max(least, value)) - low10) / (top10 - low10);
  const plot = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label });
  const step = niceStep(maxX, isNarrow ? 4 : 7);
  for (let value = 0; value <= maxX * (1 + 1e-9); value += step) {
    plot.append(svg("line", { x1: x(value), x2: x(value), y1: top, y2: h - bottom, class: "grid" }),
      svg("text", { x: Math.min(x(value), w - 3.8 * textX(value).length), y: h - bottom + 18, "text-anchor": "middle", class: "soft" }, textX(value)));
  }
  for (let power = Math.floor(low10); power <= Math.ceil(top10); ++power) {
    for (const digit of top10 - low10 > 2.5 ? [1] : [1, 2, 5]) {
      const value = +(digit * 10 ** power).toPrecision(3);
      if (value < least * 0.999 || Math.log10(value) > top10 + 1e-9) continue;
      plot.append(svg("line", { x1: left, x2: w - right, y1: y(value), y2: y(value), class: "grid" }),
        svg("text", { x: left - 8, y: y(value) + 4.5, "text-anchor": "end", class: "soft" }, (value <= least * 1.001 ? "\u2264 " : "") + value));
    }
  }
  plot.append(svg("text", { x: (left + w - right) / 2, y: h - 8, "text-anchor": "middle" }, nameX),
    svg("text", { x: 16, y: (top + h - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 16 ${(top + h - bottom) / 2})` }, nameY));
  if (limit >= least && Math.log10(limit) <= top10) {
    plot.append(svg("line", { x1: left, x2: w - right, y1: y(limit), y2: y(limit), class: "bound" }),
      svg("text", { x: w - right, y: y(limit) - 6, "text-anchor": "end", class: "bound-text" }, "bound " + limit));
  }
  return { plot, x, y, right: w - right, left };
}

const axesX = {
  density: { name: "density", value: (m) => m.density, text: (d) => Math.round(100 * d) + " %", most: 1 },
  time: { name: "plan and attend", value: (m) => m.total_ms, text: milliseconds },
};
const axesY = {
  bits: { name: `extra bits per ${bitsUnit}`, value: (m) => m.max_extra_bits, least: 0.0005, isBound: hasBits },
  error: { name: "output error", value: (m) => m.output_error, least: 0.001, isBound: !hasBits },
  missed: { name: "missed mass", value: (m) => (has(m.recall) ? Math.max(0, 1 - m.recall) : null), least: 0.001 },
};

/** Density, error and time of every row, with the front of what no other row beats on both axes. */
function paretoPlot() {
  const selectX = byId("pareto-x"), selectY = byId("pareto-y"), figure = byId("pareto");
  if (!hasBits) selectY.querySelector("[value=bits]").remove();
  const draw = () => {
    const axisX = axesX[selectX.value], axisY = axesY[selectY.value];
    const points = ran.filter((row) => has(axisX.value(row.method)) && has(axisY.value(row.method)));
    if (!points.length) return void figure.replaceChildren("No method ran.");
    const largest = Math.max(...points.map((row) => axisX.value(row.method)));
    const maxX = Math.min(axisX.most || Infinity, ceilTo(largest * 1.08, niceStep(largest * 1.08, 10)));
    const limit = axisY.isBound ? bound : -1;
    const tip = (m) => `${m.label}: density ${percent(m.density)}, ${time(m.total_ms)} ms, ` + (hasBits ? `${signed(m.max_extra_bits, 4)} bits per ${bitsUnit}, ` : "") +
      `error ${percent(m.output_error)}, missed mass ${percent(has(m.recall) ? 1 - m.recall : null)}`;
    const frame = logFrame({
      maxX, least: axisY.least, most: Math.max(limit * 3, ...points.map((row) => axisY.value(row.method) * 1.5)), textX: axisX.text, nameX: axisX.name,
      nameY: axisY.name, bound: limit, label: `${axisY.name} against ${axisX.name}. ` + points.map((row) => `${row.number} ${tip(row.method)}`).join("; ") });
    const at = (row) => [axisX.value(row.method), Math.max(axisY.least, axisY.value(row.method))];
    const front = points.filter((row) => !row.method.is_baseline).sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]);
    const kept = [];
    for (const row of front) {
      if (!kept.length || at(row)[1] < at(kept[kept.length - 1])[1]) kept.push(row);
    }
    const path = kept.map((row, i) => `${i ? `H${frame.x(at(row)[0])}V` : `M${frame.x(at(row)[0])} `}${frame.y(at(row)[1])}`).join("");
    frame.plot.append(svg("path", { d: path, class: "front" }));
    // The area of a mark is the third figure; marks that would cover one another move apart sideways.
    const third = selectX.value === "density" ? axesX.time : axesX.density;
    const mostThird = Math.max(...points.map((row) => third.value(row.method) || 0));
    const placed = [];
    for (const row of points) {
      const r = 9 + 8 * Math.sqrt((third.value(row.method) || 0) / mostThird);
      let px = frame.x(axisX.value(row.method));
      const py = frame.y(axisY.value(row.method));
      const start = px;
      while (placed.some(([qx, qy, qr]) => Math.hypot(px - qx, py - qy) < r + qr + 2)) px += 4;
      if (px > frame.right) {
        px = start;
        while (placed.some(([qx, qy, qr]) => Math.hypot(px - qx, py - qy) < r + qr + 2)) px -= 4;
      }
      placed.push([px, py, r]);
      const isOpen = !holds(row.method) && excess(row.method) <= bound && data.dense.needle && !row.method.needle;
      const mark = holds(row.method) || isOpen ? svg("circle", { cx: px, cy: py, r, class: isOpen ? "good-mark open" : "good-mark" })
        : svg("rect", { x: px - r, y: py - r, width: 2 * r, height: 2 * r, class: "bad-mark" });
      frame.plot.append(svg("g", { class: "point", "data-row": row.number }, svg("title", {}, tip(row.method)), mark,
        svg("text", { x: px, y: py + 4.5, "text-anchor": "middle" }, String(row.number))));
    }
    figure.replaceChildren(frame.plot, el("figcaption", {}, `Lower and further left is better; the line joins what no other method beats on both. Numbers are those of the table; ` +
      `circles hold the bound${data.dense.needle ? " and answer the needles (dashed: were not asked)" : ""}, squares do not; a larger mark ${selectX.value === "density" ? "takes more time" : "reads more"}.`));
  };
  selectX.addEventListener("change", draw);
  selectY.addEventListener("change", draw);
  draw();
}

/** Where the time of each row's run goes. */
function timePlot() {
  const figure = byId("times");
  const points = ran.filter((row) => has(row.method.total_ms));
  if (!points.length) return void figure.append("No method ran.");
  const rest = (model, attention) => (has(model) ? Math.max(0, model - attention) : 0);
  const bars = [{ name: "dense", pieces: [[data.dense.attend_ms, "dense"], [rest(data.dense.model_ms, data.dense.attend_ms), "rest"]], end: "1.00\u00d7" },
    ...points.map(({ method, number }) => ({ name: `${number} ${method.name}`, end: method.speedup.toFixed(2) + "\u00d7", label: method.label, row: number,
      pieces: [[method.plan_ms, "plan"], [method.attend_ms, "attend"], [rest(method.model_ms, method.total_ms), "rest"]] }))];
  const total = (bar) => bar.pieces.reduce((sum, [value]) => sum + value, 0);
  const tip = (bar) => `${bar.label || bar.name}: ${bar.pieces.filter(([, kind]) => hasModel || kind !== "rest").map(([value, kind]) => `${kind === "dense" ? "attend" : kind} ${time(value)} ms`).join(", ")}`;
  const w = plotWidth, line = 30, left = isNarrow ? 108 : 150, right = 66, top = 26, h = top + line * bars.length + 40;
  const most = Math.max(...bars.map(total));
  const x = (value) => left + (w - left - right) * value / most;
  const plot = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": "Time. " + bars.map((bar) => `${tip(bar)}, ${bar.end}`).join("; ") });
  const step = niceStep(most, isNarrow ? 3 : 5);
  for (let value = 0; value <= most * (1 + 1e-9); value += step) {
    plot.append(svg("line", { x1: x(value), x2: x(value), y1: top - 6, y2: h - 38, class: "grid" }),
      svg("text", { x: x(value), y: h - 22, "text-anchor": "middle", class: "soft" }, milliseconds(value)));
  }
  plot.append(svg("text", { x: (left + w - right) / 2, y: h - 4, "text-anchor": "middle" }, hasModel ? (hasBits ? "one text, all layers" : "one input, all layers") : "one call"));
  let key = isNarrow ? 0 : left;
  for (const [kind, name] of [["plan", "plan"], ["attend", "attend"], ["dense", "dense attention"], ...(hasModel ? [["rest", "rest of the model"]] : [])]) {
    plot.append(svg("rect", { x: key, y: 3, width: 11, height: 11, class: kind }), svg("text", { x: key + 15, y: 13, class: "small" }, name));
    key += 26 + name.length * 6.2;
  }
  const longest = isNarrow ? 13 : 17;
  bars.forEach((bar, i) => {
    const y = top + i * line;
    let at = 0;
    const group = svg("g", { class: "bar", "data-row": bar.row }, svg("title", {}, tip(bar)),
      svg("text", { x: left - 8, y: y + 18, "text-anchor": "end" }, bar.name.length > longest ? bar.name.slice(0, longest - 1) + "\u2026" : bar.name));
    for (const [value, kind] of bar.pieces) {
      group.append(svg("rect", { x: x(at), y: y + 4, width: Math.max(0, x(at + value) - x(at)), height: line - 10, class: kind }));
      at += value;
    }
    group.append(svg("text", { x: x(at) + 6, y: y + 18 }, bar.end));
    plot.append(group);
  });
  figure.append(plot, el("figcaption", {}, "The number at the end is how many times as fast plan and attend are as dense attention, timed in the same run, layer by layer."));
}

/** Every setting that --tune tried. */
function tunePlot() {
  if (!data.tune) return void byId("tune-section").remove();
  const outcomes = { within: "holds", over: "over", slow: "given up", refused: "refused" };
  const all = data.tune.curves.flatMap((curve, c) => curve.points.map((point, i) => ({ ...point, curve: c, isChosen: curve.chosen === i })));
  byId("tune-text").textContent = `Settings tried on ${data.tune.text}, each run alone; a ring marks the one that was chosen for the table. Cost is counted, so that load on the machine does not choose: CPU time of the plan, and the pairs that attention reads at the rate of this machine. A setting that costs more than the best so far is given up.`;
  const shown = all.filter((point) => has(point.cost_ms) && has(point.excess));
  if (shown.length) {
    const least = hasBits ? 0.0005 : 0.001;
    // The slowest (an oracle's) would press all others together.
    const costs = shown.map((point) => point.cost_ms).sort((a, b) => a - b);
    const largest = Math.min(costs[costs.length - 1], Math.max(data.dense.attend_ms * 1.5, costs[0] * 2));
    const maxX = ceilTo(largest * 1.05, niceStep(largest * 1.05, 10));
    const name = hasBits ? `extra bits per ${bitsUnit}` : "output error";
    const frame = logFrame({ maxX, least, most: Math.max(data.tune.bound * 3, ...shown.map((point) => point.excess * 1.4)), textX: milliseconds,
      nameX: "cost", nameY: name, bound: data.tune.bound, label: `Tuning: ${name} against cost of ${shown.length} settings; the table below lists them` });
    data.tune.curves.forEach((curve, c) => {
      const hue = hues[c % hues.length];
      const points = shown.filter((point) => point.curve === c);
      // A line joins settings that differ in one option alone, the one with the most values: over all others it would run to and fro.
      const values = (name) => new Set(points.map((point) => String(point.options[name]))).size;
      const names = points.length ? Object.keys(points[0].options) : [];
      const main = names.reduce((best, name) => (values(name) >= values(best) ? name : best), names[0]);
      const lines = new Map();
      for (const point of points) {
        const others = names.filter((name) => name !== main).map((name) => point.options[name]).join();
        lines.set(others, [...(lines.get(others) || []), point]);
      }
      for (const line of lines.values()) {
        line.sort((a, b) => a.density - b.density);
        frame.plot.append(svg("polyline", { points: line.map((point) => `${frame.x(point.cost_ms)},${frame.y(point.excess)}`).join(" "), class: "curve", stroke: hue }));
      }
      for (const point of points) {
        const tip = `${point.label}: cost ${time(point.cost_ms)} ms, density ${percent(point.density)}, ${hasBits ? signed(point.excess, 4) : fixed(point.excess, 4)}` +
          (point.cost_ms > maxX ? " (beyond the right edge)" : "");
        const cx = frame.x(point.cost_ms), cy = frame.y(point.excess);
        const group = svg("g", { class: "point" }, svg("title", {}, tip));
        if (point.isChosen) group.append(svg("circle", { cx, cy, r: 8, fill: "none", stroke: hue, "stroke-width": 2 }));
        group.append(svg("circle", { cx, cy, r: 4, fill: hue }));
        frame.plot.append(group);
      }
    });
    byId("tune").append(frame.plot, el("ul", { class: "keys" }, ...data.tune.curves.map((curve, c) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = hues[c % hues.length];
      return el("li", {}, swatch, curve.name);
    })));
  }
  const table = el("table", { class: "figures" }, el("thead", {}, el("tr", {}, ...["Setting", "Density", hasBits ? "Extra bits" : "Error", "Cost ms", "Outcome"]
    .map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...all.map((point) => el("tr", { class: point.isChosen ? "best" : null },
    el("th", { scope: "row" }, point.label), el("td", {}, percent(point.density)), el("td", { class: point.outcome === "over" ? "over" : null }, hasBits ? signed(point.excess, 4) : fixed(point.excess, 4)),
    el("td", {}, time(point.cost_ms)),
    el("td", { class: "outcome" }, (point.isChosen ? "chosen, " : "") + outcomes[point.outcome] + (point.refused ? ": " + point.refused : ""))))));
  byId("tune-count").textContent = `All ${all.length} settings`;
  byId("tune-table").append(table);
  byId("tune-count").parentElement.open = !isNarrow;
}

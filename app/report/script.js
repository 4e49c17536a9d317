// SPDX-License-Identifier: Apache-2.0
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const svgNamespace = "http://www.w3.org/2000/svg";

  // Text goes in as text nodes and attributes alone, so nothing from outside is read as HTML.
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    for (const child of children) node.append(child);
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(svgNamespace, tag), attributes, children);

  const has = (value) => typeof value === "number";
  const minus = (text) => text.replace("-", "\u2212");
  const percent = (value, digits = 1) => (has(value) ? (100 * value).toFixed(digits) + "\u202f%" : "\u2013");
  const fixed = (value, digits) => (has(value) ? minus(value.toFixed(digits)) : "\u2013");
  const signed = (value, digits) => (has(value) ? (value >= 0 ? "+" : "") + minus(value.toFixed(digits)) : "\u2013");
  const whole = (value) => (has(value) ? Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u2009") : "\u2013");
  const megabytes = (value) => (has(value) ? whole(value / 1048576) : "\u2013");
  const score = (needle) => (needle ? needle.correct + "/" + needle.of : "\u2013");
  const optionText = (options) => Object.entries(options).map(([name, value]) => name + "=" + value).join(", ");

  // The label leaves out what is at its default; all options are in the title and in the JSON.
  const changedOptions = (method) => method.label.slice(method.name.length).trim().replaceAll(",", ", ") || "defaults";

  const rows = data.methods.map((method, i) => ({ method, number: i + 1 }));
  const ran = rows.filter((row) => row.method.refused === null);
  const bound = data.verdict.max_bits;
  const holds = (method) =>
    has(method.max_extra_bits) && method.max_extra_bits <= bound &&
    (!data.dense.needle || (method.needle && method.needle.correct >= data.dense.needle.correct));

  function facts() {
    const input = data.input;
    const items = [
      ["Model", input.model],
      ["Shape", `${input.num_layers} layers, ${input.heads_q} query and ${input.heads_kv} key heads of ${input.head_dim}`],
      ...input.texts.map((text) => ["Text", `${text.path} (${whole(text.bytes)} bytes)`]),
      ["Length", `${whole(input.length)} bytes`],
      ["Needles", input.needle_length ? `${data.dense.needle ? data.dense.needle.of : 0} of ${whole(input.needle_length)} bytes` : "not asked"],
      ["Device", `${data.device}, ${data.threads} thread${data.threads === 1 ? "" : "s"}`],
      ["Kernels", data.dense.backend],
      ["Version", `${data.version} (${data.commit})`],
      ["Made", data.created],
      ["Dense", `${fixed(data.dense.bits_per_byte, 4)} bits per byte`],
    ];
    for (const [name, value] of items) byId("environment").append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  }

  const columns = [
    { name: "Density", title: "pairs read / pairs that dense attention of this tile reads", value: (m) => m.density, text: (m) => percent(m.density), dense: "100\u202f%" },
    { name: "Allowed", title: "allowed pairs read / allowed pairs", value: (m) => m.allowed_density, text: (m) => percent(m.allowed_density), dense: "100\u202f%" },
    { name: "Recall", title: "share of dense softmax mass", value: (m) => m.recall, text: (m) => percent(m.recall), dense: "100\u202f%" },
    { name: "Error", title: "of the attention output, relative", value: (m) => m.output_error, text: (m) => percent(m.output_error), dense: "0\u202f%" },
    { name: "Bits/byte", title: "of the model's predictions", value: (m) => m.bits_per_byte, text: (m) => fixed(m.bits_per_byte, 4), dense: fixed(data.dense.bits_per_byte, 4) },
    { name: "Extra bits", title: "above dense, largest over the texts", value: (m) => m.max_extra_bits, text: (m) => signed(m.max_extra_bits, 4), dense: "", over: (m) => m.max_extra_bits > bound },
    { name: "Plan", unit: "ms", title: "choosing what to read", value: (m) => m.plan_ms, text: (m) => whole(m.plan_ms), dense: "" },
    { name: "Attend", unit: "ms", title: "computing attention over it", value: (m) => m.attend_ms, text: (m) => whole(m.attend_ms), dense: whole(data.dense.attend_ms) },
    { name: "Total", unit: "ms", title: "plan and attend", value: (m) => m.total_ms, text: (m) => whole(m.total_ms), dense: whole(data.dense.attend_ms) },
    { name: "Speed-up", title: "dense attention time of the same run / total", value: (m) => m.speedup, text: (m) => (has(m.speedup) ? m.speedup.toFixed(2) + "\u00d7" : "\u2013"), dense: "1.00\u00d7" },
    { name: "Model", unit: "ms", title: "the whole forward pass", value: (m) => m.model_ms, text: (m) => whole(m.model_ms), dense: whole(data.dense.model_ms) },
    { name: "Memory", unit: "MiB", title: "peak, without the weights", value: (m) => m.peak_bytes, text: (m) => megabytes(m.peak_bytes), dense: megabytes(data.dense.peak_bytes) },
    { name: "Needles", title: "right answers", value: (m) => (m.needle ? m.needle.correct / m.needle.of : null), text: (m) => score(m.needle), dense: score(data.dense.needle),
      over: (m) => m.needle && data.dense.needle && m.needle.correct < data.dense.needle.correct },
  ].filter((column) => column.name !== "Needles" || data.dense.needle);

  function methodHeader(row) {
    return el("th", { scope: "row" }, el("span", { class: "number" }, String(row.number)), row.method.name,
      el("span", { class: "options", title: optionText(row.method.options) }, changedOptions(row.method)));
  }

  function methodTable() {
    const table = byId("methods");
    const body = el("tbody", {});
    const denseRow = el("tr", {}, el("th", { scope: "row" }, "dense"), ...columns.map((column) => el("td", {}, column.dense)));
    let sorted = null, direction = 1;
    const headers = columns.map((column) => {
      const button = el("button", { type: "button", title: column.title }, column.name, el("span", { class: "unit" }, column.unit || ""));
      const header = el("th", { scope: "col", "aria-sort": "none" }, button);
      button.addEventListener("click", () => {
        direction = sorted === column ? -direction : 1;
        sorted = column;
        for (const other of headers) other.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        draw();
      });
      return header;
    });
    const key = (row) => {
      const value = sorted.value(row.method);
      return has(value) ? direction * value : Infinity;  // what has no figure comes last either way
    };
    function draw() {
      const order = sorted ? [...rows].sort((a, b) => (key(a) === key(b) ? 0 : key(a) < key(b) ? -1 : 1)) : rows;
      body.replaceChildren(denseRow, ...order.map((row) => {
        const line = el("tr", { class: data.verdict.best === row.number - 1 ? "best" : null }, methodHeader(row));
        if (row.method.refused !== null) {
          line.append(el("td", { class: "refused", colspan: columns.length }, "refused: " + row.method.refused));
        } else {
          for (const column of columns) line.append(el("td", { class: column.over && column.over(row.method) ? "over" : null }, column.text(row.method)));
        }
        return line;
      }));
    }
    table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), ...headers)), body);
    draw();
    for (const row of rows) {
      for (const note of row.method.notes) byId("notes").append(el("li", {}, `${row.number} ${row.method.label}: ${note}`));
    }
  }

  // Plots are drawn for the width that they will have, so their text keeps its size on a phone.
  const isNarrow = window.innerWidth < 640;
  const plotWidth = isNarrow ? 360 : 560;

  const round = (value, step) => Math.ceil(value / step - 1e-9) * step;

  function qualityPlot() {
    const points = ran.filter((row) => has(row.method.density) && has(row.method.max_extra_bits));
    const figure = byId("quality");
    if (!points.length) return void figure.append("No method ran.");
    const w = plotWidth, h = 360, left = 78, right = 20, top = 18, bottom = 48;
    const least = 0.0005;
    const top10 = Math.log10(Math.max(0.02, bound * 2, ...points.map((row) => row.method.max_extra_bits * 1.4)));
    const low10 = Math.log10(least);
    const maxDensity = Math.min(1, round(Math.max(0.1, ...points.map((row) => row.method.density)) * 1.08, 0.05));
    const x = (density) => left + (w - left - right) * density / maxDensity;
    const y = (bits) => h - bottom - 16 - (h - top - bottom - 16) * (Math.log10(Math.max(least, bits)) - low10) / (top10 - low10);
    const label = "Extra bits per byte against density. " +
      points.map((row) => `${row.number} ${row.method.label}: density ${percent(row.method.density)}, ${signed(row.method.max_extra_bits, 4)} bits`).join("; ");
    const plot = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label });
    const step = (maxDensity > 0.5 ? 0.1 : maxDensity > 0.25 ? 0.05 : 0.02) * (isNarrow ? 2 : 1);
    for (let d = 0; d <= maxDensity + 1e-9; d += step) {
      plot.append(svg("line", { x1: x(d), x2: x(d), y1: top, y2: h - bottom, class: "grid" }),
        svg("text", { x: x(d), y: h - bottom + 18, "text-anchor": "middle", class: "soft" }, Math.round(100 * d) + " %"));
    }
    for (const b of [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]) {
      if (Math.log10(b) > top10) break;
      plot.append(svg("line", { x1: left, x2: w - right, y1: y(b), y2: y(b), class: "grid" }),
        svg("text", { x: left - 8, y: y(b) + 4.5, "text-anchor": "end", class: "soft" }, (b === least ? "\u2264 " : "") + b));
    }
    plot.append(svg("text", { x: (left + w - right) / 2, y: h - 8, "text-anchor": "middle" }, "density"),
      svg("text", { x: 16, y: (top + h - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 16 ${(top + h - bottom) / 2})` }, "extra bits per byte"));
    if (bound >= least) {
      plot.append(svg("line", { x1: left, x2: w - right, y1: y(bound), y2: y(bound), class: "bound" }),
        svg("text", { x: w - right, y: y(bound) - 6, "text-anchor": "end" }, "bound " + bound));
    }
    // Marks that would cover one another move apart sideways.
    const placed = [];
    for (const row of points) {
      let px = x(row.method.density);
      const py = y(row.method.max_extra_bits);
      while (placed.some(([qx, qy]) => Math.hypot(px - qx, py - qy) < 21)) px += 4;
      placed.push([px, py]);
      const isGood = holds(row.method);
      const mark = isGood ? svg("circle", { cx: px, cy: py, r: 11, class: "good-mark" })
        : svg("rect", { x: px - 10, y: py - 10, width: 20, height: 20, class: "bad-mark" });
      const tip = `${row.method.label}: density ${percent(row.method.density)}, ${signed(row.method.max_extra_bits, 4)} bits per byte`;
      plot.append(svg("g", {}, svg("title", {}, tip), mark, svg("text", { x: px, y: py + 4.5, "text-anchor": "middle" }, String(row.number))));
    }
    figure.append(plot, el("figcaption", {}, "Lower and further left is better. Numbers are those of the table; circles hold the bound" +
      (data.dense.needle ? " and answer the needles" : "") + ", squares do not. The scale of bits is logarithmic."));
  }

  function speedPlot() {
    const points = ran.filter((row) => has(row.method.speedup));
    const figure = byId("speed");
    if (!points.length) return void figure.append("No method ran.");
    const w = plotWidth, line = 30, left = isNarrow ? 108 : 150, right = 66, top = 26, h = top + line * (points.length + 1) + 34;
    const parts = points.map((row) => ({
      row, plan: row.method.plan_ms / row.method.dense_attend_ms, attend: row.method.attend_ms / row.method.dense_attend_ms }));
    const most = Math.max(1, ...parts.map((part) => part.plan + part.attend));
    const x = (share) => left + (w - left - right) * share / most;
    const label = "Attention time as a share of dense. " + parts.map((part) =>
      `${part.row.number} ${part.row.method.label}: plan ${percent(part.plan)}, attend ${percent(part.attend)}, ${part.row.method.speedup.toFixed(2)} times as fast`).join("; ");
    const plot = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label });
    const step = most > 2 ? 1 : most > 1.2 || isNarrow ? 0.5 : 0.25;
    for (let share = 0; share <= most + 1e-9; share += step) {
      plot.append(svg("line", { x1: x(share), x2: x(share), y1: top - 6, y2: h - 34, class: "grid" }),
        svg("text", { x: x(share), y: h - 18, "text-anchor": "middle", class: "soft" }, Math.round(100 * share) + " %"));
    }
    plot.append(svg("text", { x: (left + w - right) / 2, y: h - 2, "text-anchor": "middle" }, "of dense attention time"));
    plot.append(svg("rect", { x: left, y: 4, width: 12, height: 12, class: "plan" }), svg("text", { x: left + 18, y: 14 }, "plan"),
      svg("rect", { x: left + 70, y: 4, width: 12, height: 12, class: "attend" }), svg("text", { x: left + 88, y: 14 }, "attend"));
    const clipped = (text) => (text.length > (isNarrow ? 13 : 17) ? text.slice(0, isNarrow ? 12 : 16) + "\u2026" : text);
    const bar = (i, name, pieces, end, tip) => {
      const y = top + i * line;
      let at = 0;
      const group = svg("g", {}, svg("title", {}, tip), svg("text", { x: left - 8, y: y + 18, "text-anchor": "end" }, clipped(name)));
      for (const [share, kind] of pieces) {
        group.append(svg("rect", { x: x(at), y: y + 4, width: Math.max(0, x(at + share) - x(at)), height: line - 10, class: kind }));
        at += share;
      }
      group.append(svg("text", { x: x(at) + 6, y: y + 18 }, end));
      plot.append(group);
    };
    bar(0, "dense", [[1, "dense"]], "1.00\u00d7", `dense: ${whole(data.dense.attend_ms)} ms`);
    parts.forEach((part, i) => {
      const method = part.row.method;
      bar(i + 1, `${part.row.number} ${method.name}`, [[part.plan, "plan"], [part.attend, "attend"]], method.speedup.toFixed(2) + "\u00d7",
        `${method.label}: plan ${whole(method.plan_ms)} ms, attend ${whole(method.attend_ms)} ms, dense in the same run ${whole(method.dense_attend_ms)} ms`);
    });
    figure.append(plot, el("figcaption", {}, "Each bar against dense attention timed in the same run, layer by layer."));
  }

  // Ramps of one hue whose lightness falls steadily, so they read without colour vision and in grey.
  const ramps = {
    density: [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
    missed: [[255, 250, 240], [253, 208, 162], [253, 141, 60], [217, 72, 1], [102, 37, 6]],
  };
  function colour(ramp, share) {
    const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
    const i = Math.min(ramp.length - 2, Math.floor(at));
    return ramp[i].map((from, c) => Math.round(from + (at - i) * (ramp[i + 1][c] - from)));
  }
  const css = (rgb) => `rgb(${rgb.join(",")})`;
  const inkOn = (rgb) => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#111" : "#fff");
  const place = Math.sqrt;  // most figures are small: a square root spreads them out; the legend says where each lies

  function legend(ramp) {
    const stops = ramp.map((rgb, i) => `${css(rgb)} ${100 * i / (ramp.length - 1)}%`).join(",");
    const bar = el("div", { class: "ramp" });
    bar.style.background = `linear-gradient(to right,${stops})`;
    const ticks = el("div", { class: "ticks", "aria-hidden": "true" });
    for (const value of [0, 0.05, 0.2, 0.5, 1]) {
      const tick = el("span", {}, Math.round(100 * value) + " %");
      tick.style.left = 100 * place(value) + "%";
      ticks.append(tick);
    }
    return el("div", { class: "legend", role: "img", "aria-label": "colours from light, 0 percent, to dark, 100 percent" }, el("div", { class: "bar" }, bar, ticks));
  }

  function atlasTable(method, title, ramp, value) {
    const layers = [...new Set(method.heads.map((head) => head.layer))].sort((a, b) => a - b);
    const heads = [...new Set(method.heads.map((head) => head.head))].sort((a, b) => a - b);
    const find = new Map(method.heads.map((head) => [head.layer + "/" + head.head, head]));
    const table = el("table", { class: heads.length > 16 ? "atlas many" : "atlas", "aria-label": `${title} of ${method.label}, percent, layers down, heads across` },
      el("caption", {}, title + ", %"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layer"), ...heads.map((head) => el("th", { scope: "col" }, (heads.length > 8 ? "" : "head ") + head)))));
    const body = el("tbody", {});
    const cells = layers.map((layer) => {
      const line = el("tr", {}, el("th", { scope: "row" }, String(layer)));
      body.append(line);
      return heads.map((h) => {
        const head = find.get(layer + "/" + h);
        const figure = head ? value(head) : null;
        const text = head ? `layer ${layer}, head ${h}: density ${percent(head.density)}, allowed ${percent(head.allowed_density)}, recall ${percent(head.recall)}, ` +
          `missed ${percent(has(head.recall) ? 1 - head.recall : null, 2)}, error ${percent(head.output_error)}` : `layer ${layer}, head ${h}: no figure`;
        const cell = el("td", { tabindex: "-1", title: text }, has(figure) ? (100 * figure).toFixed(100 * figure < 9.95 ? 1 : 0) : "\u2013");
        if (has(figure)) {
          const rgb = colour(ramp, place(Math.max(0, figure)));
          cell.style.background = css(rgb);
          cell.style.color = inkOn(rgb);
        }
        cell.addEventListener("mouseenter", () => { byId("atlas-detail").textContent = text; });
        cell.addEventListener("focus", () => { byId("atlas-detail").textContent = text; });
        line.append(cell);
        return cell;
      });
    });
    // One stop of the Tab key; arrow keys move inside.
    if (cells.length && cells[0].length) cells[0][0].tabIndex = 0;
    body.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      for (let i = 0; i < cells.length; ++i) {
        const j = cells[i].indexOf(document.activeElement);
        if (j < 0) continue;
        const next = (cells[i + step[0]] || [])[j + step[1]];
        if (next) {
          cells[i][j].tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        }
        event.preventDefault();
        return;
      }
    });
    table.append(body);
    return el("div", {}, table, legend(ramp));
  }

  function atlas() {
    const select = byId("atlas-method");
    const able = ran.filter((row) => row.method.heads.length);
    for (const row of able) select.append(el("option", { value: String(row.number - 1) }, `${row.number} ${row.method.label}`));
    const draw = () => {
      const method = data.methods[Number(select.value)];
      byId("atlas").replaceChildren(
        atlasTable(method, "Density", ramps.density, (head) => head.density),
        atlasTable(method, "Missed mass", ramps.missed, (head) => (has(head.recall) ? Math.max(0, 1 - head.recall) : null)));
    };
    if (!able.length) return void byId("atlas").append("No method ran.");
    const best = able.find((row) => row.number - 1 === data.verdict.best);
    if (best) select.value = String(best.number - 1);
    select.addEventListener("change", draw);
    draw();
  }

  function needles() {
    if (!data.dense.needle) return void byId("needles-section").remove();
    const cells = data.dense.needle.cells;
    const several = new Set(cells.map((cell) => cell.length)).size > 1;
    const line = (header, needle) => {
      const out = el("tr", {}, header);
      for (const cell of cells) {
        const own = needle && needle.cells.find((one) => one.length === cell.length && one.depth === cell.depth);
        out.append(own ? el("td", { class: own.correct === own.of ? "all" : "some" }, (own.correct === own.of ? "\u2713 " : "\u2717 ") + own.correct + "/" + own.of) : el("td", {}, "\u2013"));
      }
      out.append(el("td", {}, score(needle)));
      return out;
    };
    const body = el("tbody", {}, line(el("th", { scope: "row" }, "dense"), data.dense.needle));
    for (const row of ran) body.append(line(methodHeader(row), row.method.needle));
    byId("needles").append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Depth"),
      ...cells.map((cell) => el("th", { scope: "col" }, (several ? whole(cell.length) + " at " : "") + cell.depth)), el("th", { scope: "col" }, "All"))), body);
  }

  function download() {
    const text = byId("data").textContent.trim() + "\n";
    byId("data-size").textContent = `${whole(text.length / 1024)} KiB, schema ${data.schema}`;
    byId("download").addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      const link = el("a", { href: address, download: "tilewise-compare.json" });
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    });
  }

  for (const part of [facts, methodTable, qualityPlot, speedPlot, atlas, needles, download]) part();
  document.documentElement.dataset.ready = "yes";
})();

// SPDX-License-Identifier: Apache-2.0
function facts() {
  const input = data.input;
  const shape = `${input.heads_q} query and ${input.heads_kv} key heads of ${input.head_dim}`;
  const source = hasModel
    ? [
        ["Model", input.model],
        ["Shape", `${input.num_layers} layers, ${shape}, ${input.dtype}`],
        ...input.texts.map((text) => ["Text", text.path + (text.bytes ? ` (${whole(text.bytes)} bytes)` : "")]),
        ["Length", `${input.batch > 1 ? `${whole(input.batch)} sequences of ` : ""}${whole(input.length)} ${lengthUnit}`],
        ["Needles", input.needle_lengths.length ? `${data.dense.needle ? data.dense.needle.of : 0} of ${input.needle_lengths.map(whole).join(", ")} ${lengthUnit}` : "not asked"],
      ]
    : [
        ["Tensors", input.qkv],
        ["Shape", `batch ${input.batch}, ${shape}, ${input.dtype}`],
        ["Tokens", `${whole(input.length)} queries, ${whole(input.length_k)} keys`],
        ["Mask", input.mask + (input.is_mask_assumed ? ", assumed: the file does not say" : "")],
      ];
  const items = [
    ...source,
    ["Device", `${data.device}, ${data.threads} thread${data.threads === 1 ? "" : "s"}`],
    ["Kernels", data.dense.backend],
    ["Version", `${data.version} (${data.commit})`],
    ["Made", data.created],
    ["Dense", hasBits ? denseBits() : `${fixed(data.dense.attend_ms, 1)} ms`],
  ];
  for (const [name, value] of items) byId("environment").append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

/** Bits of dense attention, with the perplexity where tokens are more than bytes. */
function denseBits() {
  const bits = reads === "tokens" ? data.dense.bits_per_token : data.dense.bits_per_byte;
  return `${fixed(bits, 4)} bits per ${bitsUnit}` + (reads === "bytes" ? "" : `, perplexity ${fixed(perplexity(data.dense), 3)}`);
}

const columns = [
  { name: "Density", title: "pairs read / pairs that dense attention of this tile reads", value: (m) => m.density, text: (m) => percent(m.density), dense: "100\u202f%" },
  { name: "Allowed", title: "allowed pairs read / allowed pairs", value: (m) => m.allowed_density, text: (m) => percent(m.allowed_density), dense: "100\u202f%" },
  { name: "Recall", title: "share of dense softmax mass", value: (m) => m.recall, text: (m) => percent(m.recall), dense: "100\u202f%" },
  { name: "Error", title: "of the attention output, relative", value: (m) => m.output_error, text: (m) => percent(m.output_error), dense: "0\u202f%", over: (m) => !hasBits && m.output_error > bound },
  { name: "Bits/byte", title: "of the model's predictions", value: (m) => m.bits_per_byte, text: (m) => fixed(m.bits_per_byte, 4), dense: fixed(data.dense.bits_per_byte, 4), isShown: hasBits && reads !== "tokens" },
  { name: "Bits/token", title: "of the model's predictions", value: (m) => m.bits_per_token, text: (m) => fixed(m.bits_per_token, 4), dense: fixed(data.dense.bits_per_token, 4), isShown: reads === "tokens" },
  { name: "Perplexity", title: "of the model's predictions, per token", value: perplexity, text: (m) => fixed(perplexity(m), 3), dense: fixed(perplexity(data.dense), 3), isShown: reads === "text" || reads === "tokens" },
  { name: "Extra bits", title: `per ${bitsUnit} above dense, largest over the texts`, value: (m) => m.max_extra_bits, text: (m) => signed(m.max_extra_bits, 4), dense: "", over: (m) => m.max_extra_bits > bound, isShown: hasBits },
  { name: "Plan", unit: "ms", title: "choosing what to read", value: (m) => m.plan_ms, text: (m) => time(m.plan_ms), dense: "" },
  { name: "Attend", unit: "ms", title: "computing attention over it", value: (m) => m.attend_ms, text: (m) => time(m.attend_ms), dense: time(data.dense.attend_ms) },
  { name: "Total", unit: "ms", title: "plan and attend", value: (m) => m.total_ms, text: (m) => time(m.total_ms), dense: time(data.dense.attend_ms) },
  { name: "Speed-up", title: "dense attention time of the same run / total", value: (m) => m.speedup, text: (m) => (has(m.speedup) ? m.speedup.toFixed(2) + "\u00d7" : "\u2013"), dense: "1.00\u00d7" },
  { name: "Model", unit: "ms", title: "the whole forward pass", value: (m) => m.model_ms, text: (m) => whole(m.model_ms), dense: whole(data.dense.model_ms), isShown: hasModel },
  { name: "Memory", unit: "MiB", title: "peak, without the weights", value: (m) => m.peak_bytes, text: (m) => megabytes(m.peak_bytes), dense: megabytes(data.dense.peak_bytes), isShown: has(data.dense.peak_bytes) },
  { name: "Needles", title: "right answers", value: (m) => (m.needle ? m.needle.correct / m.needle.of : null), text: (m) => score(m.needle), dense: score(data.dense.needle),
    over: (m) => m.needle && !holdsNeedles(m), isShown: data.dense.needle !== null },
].filter((column) => column.isShown !== false);

function methodHeader(row) {
  return el("th", { scope: "row" }, el("span", { class: "number" }, String(row.number)), row.method.name,
    el("span", { class: "options", title: optionText(row.method.options) }, changedOptions(row.method)));
}

function methodTable() {
  const table = byId("methods");
  if (!has(data.dense.peak_bytes)) byId("memory-hint").remove();
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

/** Depths across, under their lengths; methods down. */
function needles() {
  if (!data.dense.needle) return void byId("needles-section").remove();
  const cells = data.dense.needle.cells;
  const lengths = [...new Set(cells.map((cell) => cell.length))];
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
  for (const row of ran.filter((one) => one.method.needle)) body.append(line(methodHeader(row), row.method.needle));
  const head = el("thead", {},
    el("tr", {}, el("th", { scope: "col" }, "Length"),
      ...lengths.map((length) => el("th", { scope: "colgroup", class: "group", colspan: cells.filter((cell) => cell.length === length).length }, `${whole(length)} ${lengthUnit}`)),
      el("th", { scope: "col", rowspan: 2 }, "All")),
    el("tr", {}, el("th", { scope: "col" }, "Depth"), ...cells.map((cell) => el("th", { scope: "col" }, String(cell.depth)))));
  byId("needles").append(head, body);
  const left = ran.length - ran.filter((one) => one.method.needle).length;
  if (left > 0) byId("needles-hint").append(` Not asked of ${left} method${left === 1 ? "" : "s"}: after tuning, only the two fastest within the bound are.`);
}

/** Commas, quotes and line ends by RFC 4180. */
function csv() {
  const quote = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const keys = ["density", "allowed_density", "recall", "output_error", "bits_per_byte", "bits_per_token", "max_extra_bits", "plan_ms", "attend_ms", "total_ms",
    "dense_attend_ms", "model_ms", "speedup", "peak_bytes"];
  const lines = [["name", "label", ...keys, "needles_correct", "needles_of", "is_baseline", "refused"]];
  const dense = { density: 1, allowed_density: 1, recall: 1, output_error: 0, max_extra_bits: hasBits ? 0 : null, speedup: 1, ...data.dense,
    total_ms: data.dense.attend_ms, dense_attend_ms: data.dense.attend_ms, name: "dense", label: "dense", is_baseline: false, refused: null };
  for (const row of [dense, ...data.methods]) {
    lines.push([row.name, row.label, ...keys.map((key) => row[key]), row.needle ? row.needle.correct : "", row.needle ? row.needle.of : "", row.is_baseline, row.refused]);
  }
  return lines.map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n";
}

function downloads() {
  const json = byId("data").textContent.trim() + "\n";
  byId("data-size").textContent = `${whole(json.length / 1024)} KiB, schema ${data.schema}`;
  const offer = (id, name, type, text) => byId(id).addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([text()], { type }));
    const link = el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
  offer("download-json", "tilewise-compare.json", "application/json", () => json);
  offer("download-csv", "tilewise-compare.csv", "text/csv", csv);
}

// SPDX-License-Identifier: Apache-2.0
const headText = (head) => `density ${percent(head.density)}, allowed ${percent(head.allowed_density)}, recall ${percent(head.recall)}, ` +
  `missed ${percent(has(head.recall) ? 1 - head.recall : null, 2)}, error ${percent(head.output_error)}`;

/** A table of buttons, one a head: one stop of the Tab key, arrow keys move inside, Enter or a click opens the head. */
function atlasTable(index, title, ramp, value) {
  const method = data.methods[index];
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
      const text = `layer ${layer}, head ${h}: ${head ? headText(head) : "no figure"}`;
      const cell = el("button", { type: "button", tabindex: "-1", title: text, "aria-label": text, "data-head": layer + "/" + h },
        has(figure) ? (100 * figure).toFixed(100 * figure < 9.95 ? 1 : 0) : "\u2013");
      if (has(figure)) {
        const rgb = colour(ramp, place(Math.max(0, figure)));
        cell.style.background = css(rgb);
        cell.style.color = inkOn(rgb);
      }
      const tell = () => { byId("atlas-detail").textContent = text; };
      cell.addEventListener("mouseenter", tell);
      cell.addEventListener("focus", () => {
        tell();
        // One head of the table takes part in the order of Tab: the one that had the focus last.
        for (const other of body.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
        cell.tabIndex = 0;
      });
      if (head) cell.addEventListener("click", () => openHead(index, layer, h));
      line.append(el("td", {}, cell));
      return cell;
    });
  });
  if (cells.length && cells[0].length) cells[0][0].tabIndex = 0;
  body.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    for (let i = 0; i < cells.length; ++i) {
      const j = cells[i].indexOf(document.activeElement);
      if (j < 0) continue;
      const next = (cells[i + step[0]] || [])[j + step[1]];
      if (next) next.focus();
      event.preventDefault();
      return;
    }
  });
  table.append(body);
  return el("div", {}, table, legend(ramp));
}
const arrow = (event) => ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];

function atlas() {
  const select = byId("atlas-method");
  const able = ran.filter((row) => row.method.heads.length);
  for (const row of able) select.append(el("option", { value: String(row.number - 1) }, `${row.number} ${row.method.label}`));
  const draw = () => {
    const index = Number(select.value);
    byId("atlas").replaceChildren(
      atlasTable(index, "Density", ramps.density, (head) => head.density),
      atlasTable(index, "Missed mass", ramps.missed, (head) => (has(head.recall) ? Math.max(0, 1 - head.recall) : null)));
    worstTiles(index);
  };
  if (!able.length) {
    byId("worst-section").remove();
    return void byId("atlas").append("No method ran.");
  }
  if (!data.map) byId("worst-section").remove();
  const best = able.find((row) => row.number - 1 === data.verdict.best);
  if (best) select.value = String(best.number - 1);
  select.addEventListener("change", draw);
  draw();
}

/** Where most is missed. */
function worstTiles(index) {
  const target = byId("worst");
  if (!target) return;
  const method = data.methods[index];
  const range = ([first, last]) => `${whole(first)}\u2013${whole(last - 1)}`;
  byId("worst-of").textContent = method.label;
  if (!method.worst_tiles.length) return void target.replaceChildren(el("caption", {}, "Nothing is missed, or there are no maps."));
  target.replaceChildren(el("thead", {}, el("tr", {}, ...["Place", "Queries", "Keys", "Missed mass"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...method.worst_tiles.slice(0, 10).map((tile) => {
      const button = el("button", { type: "button", class: "link" }, `layer ${tile.layer}, head ${tile.head}`);
      button.addEventListener("click", () => openHead(index, tile.layer, tile.head, tile));
      return el("tr", {}, el("th", { scope: "row" }, button), el("td", {}, range(tile.queries)), el("td", {}, range(tile.keys)), el("td", {}, percent(tile.missed, 2)));
    })));
}

// Maps: a byte a cell, base64; row i of a triangle holds i + 1 cells.
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const fromRoot = (byte) => (byte / 255) ** 4;
const cellAt = (i, j) => (data.map.is_triangle ? (i * (i + 1)) / 2 + j : i * data.map.side_k + j);

const shown = { index: -1, layer: 0, head: 0, tile: null, map: null, cell: null, atlas: null };

/** The head's map, as a dialog: Escape closes it, arrow keys go to the neighbours. */
function openHead(index, layer, head, tile) {
  const dialog = byId("head");
  const method = data.methods[index];
  const figures = method.heads.find((one) => one.layer === layer && one.head === head);
  if (!figures) return;
  if (!dialog.open) shown.atlas = document.activeElement.closest(".atlas");
  Object.assign(shown, { index, layer, head, tile: tile || null, map: null });
  if (data.map && figures.map) {
    shown.map = { mass: bytesOf(figures.map.mass), kept: bytesOf(figures.map.kept), missed: bytesOf(figures.map.missed) };
  }
  byId("head-title").textContent = `Layer ${layer}, head ${head}`;
  byId("head-method").textContent = method.label;
  byId("head-figures").textContent = headText(figures);
  byId("head-map").hidden = shown.map === null;
  byId("head-none").hidden = shown.map !== null;
  drawMap();
  tellCell(shown.cell);
  if (!dialog.open) dialog.showModal();
}

function drawMap() {
  if (!shown.map) return;
  const { side_q: rowsQ, side_k: columnsK } = data.map;
  const canvas = byId("head-canvas");
  const size = Math.max(4, Math.floor(640 / Math.max(rowsQ, columnsK)));
  canvas.width = columnsK * size;
  canvas.height = rowsQ * size;
  const pen = canvas.getContext("2d");
  const layers = Object.fromEntries(["mass", "kept", "missed"].map((name) => [name, byId("show-" + name).checked]));
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  let worst = [0, 0, 0], read = 0, cells = 0;
  for (let i = 0; i < rowsQ; ++i) {
    for (let j = 0; j < (data.map.is_triangle ? i + 1 : columnsK); ++j) {
      const at = cellAt(i, j);
      const mass = shown.map.mass[at] / 255, kept = shown.map.kept[at] / 255, missed = shown.map.missed[at] / 255;
      cells += 1;
      read += kept;
      if (missed > worst[0]) worst = [missed, i, j];
      // Dark where the mass lies; blue over what is read; orange, above both, for what is missed.
      let rgb = layers.mass ? [245 - 215 * mass, 245 - 215 * mass, 245 - 210 * mass] : [245, 245, 245];
      const blend = (over, alpha) => { rgb = rgb.map((value, c) => value + alpha * (over[c] - value)); };
      if (layers.kept) blend([0, 114, 178], 0.45 * kept);
      if (layers.missed && missed > 0) blend([230, 97, 1], Math.min(0.95, missed * 1.6));
      pen.fillStyle = css(rgb.map(Math.round));
      pen.fillRect(j * size, i * size, size, size);
    }
  }
  if (data.map.is_triangle) {
    pen.strokeStyle = "#999";
    pen.beginPath();
    pen.moveTo(0, 0);
    for (let i = 0; i < rowsQ; ++i) {
      pen.lineTo((i + 1) * size, i * size);
      pen.lineTo((i + 1) * size, (i + 1) * size);
    }
    pen.stroke();
  }
  if (shown.tile) {
    const x = shown.tile.keys[0] / data.map.cell_k * size, y = shown.tile.queries[0] / data.map.cell_q * size;
    const width = (shown.tile.keys[1] - shown.tile.keys[0]) / data.map.cell_k * size, height = (shown.tile.queries[1] - shown.tile.queries[0]) / data.map.cell_q * size;
    pen.lineWidth = 2;
    for (const [ink, grow] of [["#fff", 4], ["#c00", 6]]) {
      pen.strokeStyle = ink;
      pen.strokeRect(x - grow, y - grow, width + 2 * grow, height + 2 * grow);
    }
  }
  if (shown.cell) {
    const [i, j] = shown.cell;
    pen.lineWidth = 2;
    for (const [ink, grow] of [["#fff", 1], ["#000", 3]]) {
      pen.strokeStyle = ink;
      pen.strokeRect(j * size - grow, i * size - grow, size + 2 * grow, size + 2 * grow);
    }
  }
  canvas.setAttribute("aria-label", `Attention map of layer ${shown.layer}, head ${shown.head}: ${percent(read / cells)} of the cells' pairs are read; ` +
    (worst[0] > 0 ? `most is missed by queries from ${worst[1] * data.map.cell_q} at keys from ${worst[2] * data.map.cell_k}` : "nothing is missed"));
  byId("axis-last").textContent = whole(data.input.length_k);
  byId("axis-down").textContent = whole(data.input.length);
}

function tellCell(cell) {
  const target = byId("head-cell");
  if (!shown.map || !cell) {
    target.textContent = `A cell is ${data.map ? `${whole(data.map.cell_q)} queries by ${whole(data.map.cell_k)} keys` : ""} of the first ${hasModel ? "text" : "tensors"}; point at one, or go there by arrow keys, to read it.`;
    return;
  }
  const [i, j] = cell;
  const at = cellAt(i, j);
  const range = (first, size, length) => `${whole(first * size)}\u2013${whole(Math.min(length, (first + 1) * size) - 1)}`;
  target.textContent = `Queries ${range(i, data.map.cell_q, data.input.length)}, keys ${range(j, data.map.cell_k, data.input.length_k)}: ` +
    `${percent(fromRoot(shown.map.mass[at]), 2)} of the mass, ${percent(shown.map.kept[at] / 255, 0)} read, ${percent(fromRoot(shown.map.missed[at]), 3)} missed`;
}

function headDialog() {
  const dialog = byId("head"), canvas = byId("head-canvas");
  for (const name of ["mass", "kept", "missed"]) byId("show-" + name).addEventListener("change", drawMap);
  byId("head-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  // Back to the head that was shown last, which need not be the one that was opened.
  dialog.addEventListener("close", () => {
    const cell = shown.atlas && shown.atlas.querySelector(`[data-head="${shown.layer}/${shown.head}"]`);
    if (cell) cell.focus();
  });
  const columnsOf = (i) => (data.map.is_triangle ? i + 1 : data.map.side_k);
  const goTo = (cell) => {
    shown.cell = cell;
    drawMap();
    tellCell(cell);
  };
  canvas.addEventListener("keydown", (event) => {
    const step = arrow(event), last = data.map.side_q - 1;
    const [i, j] = shown.cell || [0, 0];
    if (event.key === "Home") goTo([0, 0]);
    else if (event.key === "End") goTo([last, columnsOf(last) - 1]);
    else if (!step) return;
    else if (!shown.cell) goTo([0, 0]);
    else if (i + step[0] >= 0 && i + step[0] <= last && j + step[1] >= 0 && j + step[1] < columnsOf(i + step[0])) goTo([i + step[0], j + step[1]]);
    event.preventDefault();
    event.stopPropagation();  // the dialog's go to other heads
  });
  canvas.addEventListener("blur", () => goTo(null));
  dialog.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    const [layer, head] = [shown.layer + step[0], shown.head + step[1]];
    if (data.methods[shown.index].heads.some((one) => one.layer === layer && one.head === head)) openHead(shown.index, layer, head);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const i = Math.floor((event.clientY - box.top) / box.height * data.map.side_q), j = Math.floor((event.clientX - box.left) / box.width * data.map.side_k);
    const isInside = i >= 0 && j >= 0 && i < data.map.side_q && j < (data.map.is_triangle ? i + 1 : data.map.side_k);
    tellCell(isInside ? [i, j] : null);
  });
  canvas.addEventListener("pointerleave", () => tellCell(null));
  // A link to one head: #head=ROW/LAYER/HEAD, rows counted from 1.
  const asked = /^#head=(\d+)\/(\d+)\/(\d+)$/.exec(location.hash);
  if (asked && ran.some((row) => row.number === Number(asked[1]))) openHead(Number(asked[1]) - 1, Number(asked[2]), Number(asked[3]));
}

// SPDX-License-Identifier: Apache-2.0
// The files of this folder are put together as one function, in the order common, table, plots, atlas, main: what is declared here is known in all.
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
/** Milliseconds; where dense attention is short, with decimals. */
const timeDigits = data.dense.attend_ms >= 200 ? 0 : 2;
const time = (value) => (timeDigits && has(value) && value < 1000 ? value.toFixed(timeDigits) : whole(value));
const megabytes = (value) => (has(value) ? whole(value / 1048576) : "\u2013");
const score = (needle) => (needle ? needle.correct + "/" + needle.of : "\u2013");
const optionText = (options) => Object.entries(options).map(([name, value]) => name + "=" + value).join(", ");

// The label leaves out what is at its default; all options are in the title and in the JSON.
const changedOptions = (method) => method.label.slice(method.name.length).trim().replaceAll(",", ", ") || "defaults";

const rows = data.methods.map((method, i) => ({ method, number: i + 1 }));
const ran = rows.filter((row) => row.method.refused === null);
const hasModel = data.input.qkv === null;
// What a model reads: "bytes" (a token is a byte), "text" (through a tokenizer), "tokens"; null where it predicts none, and of tensors.
const reads = data.input.reads;
const hasBits = reads !== null;
const lengthUnit = reads === "bytes" ? "bytes" : "tokens";
const bitsUnit = reads === "tokens" ? "token" : "byte";
const perplexity = (figures) => (has(figures.bits_per_token) ? 2 ** figures.bits_per_token : null);
const bound = hasBits ? data.verdict.max_bits : data.verdict.max_error;
/** What the bound holds: extra bits, or where there are none the output error. */
const excess = (method) => (hasBits ? method.max_extra_bits : method.output_error);
/** The verdict lets one prompt in twenty be missed more than dense does. */
const holdsNeedles = (method) =>
  !data.dense.needle || (method.needle && method.needle.correct >= data.dense.needle.correct - Math.floor(data.dense.needle.of / 20));
const holds = (method) => has(excess(method)) && excess(method) <= bound && holdsNeedles(method);

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
/** The ink, of dark and white, that stands out more: by the contrast of WCAG 2. */
function inkOn(rgb) {
  const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff";
}
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

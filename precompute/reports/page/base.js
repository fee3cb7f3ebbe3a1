// The document, words and numbers for people, and elements made without ever reading HTML from data.

const report = JSON.parse(document.getElementById("document").textContent);
const samples = report.samples || {};
const classes = report.classes || [];
const splits = report.splits || [];
const heads = (report.heads || []).filter((head) => head && (head.scored || []).length);
const unit = report.unit || { one: "sample", plural: "samples" };
const labelWord = report.task === "labels" ? "label" : "class";
const state = { head: 0, split: 0 };
const scoredNow = () => (heads.length ? heads[state.head].scored[state.split] || heads[state.head].scored[0] : null);

const NONE = "\u2013";
// Okabe and Ito's colours, without yellow (too faint on white); the last is the colour of text.
const COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "ink"];
const SCALE = ["#00204d", "#31446b", "#666970", "#958f78", "#cab969"]; // cividis, for numbers
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

// A name as one line: control characters, and those that turn the direction of writing, are shown as escapes.
function visible(text) {
  return String(text).replace(CONTROLS, (found) => "\\u" + found.codePointAt(0).toString(16).padStart(4, "0"));
}

// An element: attributes by name, functions as listeners, `style` as an object; children as nodes or text.
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Puts children, of which false and null are left out, in place of those of `parent`.
function put(parent, ...children) {
  parent.replaceChildren();
  return fill(parent, {}, children);
}

const [HUGE, TINY] = [1e15, 1e-4]; // from and below which numbers are written with an exponent
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => (isNumber(value) ? value.toLocaleString("en-US") : NONE);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const things = (value) => `${count(value)} ${value === 1 ? unit.one : unit.plural}`;

function number(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (size >= HUGE) return value.toExponential(2);
  if (Number.isInteger(value)) return count(value);
  if (size < TINY) return value.toExponential(2);
  return size >= 1000 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(+value.toPrecision(3));
}

// A number of the data, not rounded for reading: its digits as float32 or float64 hold them.
function exact(value) {
  const size = Math.abs(value);
  if (!isNumber(value) || Number.isInteger(value) || size >= HUGE || size < TINY) return number(value);
  return value.toLocaleString("en-US", { maximumSignificantDigits: value === Math.fround(value) ? 7 : 10 });
}

// Formats numbers that stand beside each other: with the digits that show the smallest difference, up to ten in all.
function formatOf(values) {
  const found = values.filter(isNumber).sort((a, b) => a - b);
  const gap = Math.min(...found.slice(1).map((value, at) => value - found[at]).filter((value) => value > 0));
  if (gap === Infinity) return number;
  const size = Math.max(...found.map(Math.abs));
  const power = (value) => Math.floor(Math.log10(value));
  if (size >= HUGE || size < TINY) {
    const digits = Math.max(2, Math.min(12, power(size) - power(gap) + 2));
    return (value) => (isNumber(value) ? value.toExponential(digits) : NONE);
  }
  const decimals = Math.max(size < 1000 ? 1 : 0, Math.min(2 - power(gap), 9 - power(size)));
  const round = (value) => +value.toFixed(decimals) || 0;
  return Object.assign((value) => (isNumber(value) ? round(value).toLocaleString("en-US", { maximumFractionDigits: decimals }) : NONE), { round });
}

// A prediction, the truth and the error between them as texts; the error is that of the two as they are shown.
function errorTexts(predicted, truth) {
  const form = formatOf([predicted, truth]);
  const round = form.round || ((value) => value);
  const error = isNumber(predicted) && isNumber(truth) ? round(predicted) - round(truth) : null;
  const sign = error > 0 ? "+" : error < 0 ? "-" : "";
  const size = form.round ? form : number;
  return { predicted: form(predicted), truth: form(truth), error: error === null ? null : sign + size(Math.abs(error)) };
}

// As Python writes it: a tie goes to the even digit.
function percentage(value) {
  if (!isNumber(value)) return NONE;
  const tenths = 100 * value * 10;
  const even = Math.abs(tenths % 1) === 0.5 ? 2 * Math.round(tenths / 2) : tenths;
  const text = (even / 10).toFixed(1);
  if (text === "100.0" && value < 1) return ">99.9%";
  return (text === "0.0" && value > 0 ? "<0.1" : text) + "%";
}

// 2026-11-28T15:40:00Z as 2026-11-28 15:40 UTC
const moment = (text) => String(text).replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(Z|\+00:00)$/, "$1 $2 UTC");
const score = (value, percent) => (percent ? percentage(value) : number(value));

function interval(pair, percent) {
  return pair && isNumber(pair[0]) && isNumber(pair[1]) ? `${score(pair[0], percent)} to ${score(pair[1], percent)}` : "";
}

const shortName = (head) => String(head).replace(/\.safetensors$/, "");

// Names are strangers' text: in <bdi>, so that writing from right to left does not turn what stands beside it.
const named = (text, role = "name") => h("bdi", { class: role, title: visible(text) }, visible(text));
const classText = (index) => (index >= 0 && index < classes.length ? classes[index] : `no ${labelWord}`);
const className = (index) => named(classText(index));
const idOf = (place) => (samples.id || [])[place] ?? "";
const splitOf = (place) => splits[(samples.split || [])[place]] ?? null;

function labelsOf(indices) {
  if (!indices || !indices.length) return [h("em", {}, "none")];
  return indices.flatMap((index, position) => [position ? ", " : "", className(index)]);
}

// The label of a sample of the cache, as nodes; null where it has none.
function truthOf(place) {
  const target = (samples.target || [])[place];
  if (report.task === "number") return isNumber(target) ? [exact(target)] : null;
  if (report.task === "labels") return Array.isArray(target) ? labelsOf(target) : null;
  const label = (samples.label || [])[place];
  return label >= 0 ? [className(label)] : null;
}

// Calls draw(width) now and whenever the width of `host` changes.
function responsive(host, draw) {
  let last = 0;
  const redraw = () => {
    const width = Math.floor(host.clientWidth);
    if (width && width !== last) draw((last = width));
  };
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(host);
  return host;
}

function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "copy" }, label);
  const done = (message) => {
    button.textContent = message;
    setTimeout(() => (button.textContent = label), 2000);
  };
  button.addEventListener("click", async () => {
    const value = text();
    try {
      await navigator.clipboard.writeText(value);
      done("Copied");
    } catch {
      const area = h("textarea", { class: "away", "aria-hidden": "true" });
      area.value = value;
      document.body.append(area);
      area.select();
      done(document.execCommand("copy") ? "Copied" : "Select the text, then Ctrl+C");
      area.remove();
      button.focus();
    }
  });
  return button;
}

function table(columns, rows, { numbers = [], caption = null } = {}) {
  const kind = (index) => (numbers.includes(index) ? "number" : null);
  return h("div", { class: "scroll" }, h("table", {},
    caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, columns.map((name, index) => h("th", { scope: "col", class: kind(index) }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) => h("td", { class: kind(index) }, cell)))))));
}

const details = (summary, ...children) => h("details", {}, h("summary", {}, summary), children);

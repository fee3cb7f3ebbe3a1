// The confusion matrix: a grid that the arrow keys walk through; a cell shows its samples. For numbers: predicted by true.

function confusionPart() {
  const scored = scoredNow();
  if (!scored || !scored.items) return null;
  if (report.task === "number") return predictedByTrue(scored);
  const confusion = scored.confusion;
  if (!confusion) return null;
  const panel = h("div", { class: "chosen", "aria-live": "polite" });
  const show = (truth, predicted, total, items) => {
    const right = truth === predicted;
    const cut = items.length < total && items.length > 0;
    put(panel,
      h("h3", {}, `${things(total)} of `, className(truth), right ? " predicted correctly" : [" predicted as ", className(predicted)]),
      cut && h("p", { class: "muted" }, `The ${count(items.length)} most confident of them are listed.`),
      items.length > 0 && gallery(items.map((index) => entryOf(scored, index))),
      total > 0 && !items.length && h("p", { class: "muted" }, "None of them is listed in this report."));
  };
  if (confusion.largest) return [largestCells(confusion.largest, show), panel];
  if (!confusion.matrix || !confusion.matrix.length) return null;
  return [
    h("p", { class: "lead" }, "Rows: the true class. Columns: what the head predicted. ",
      `Choose a cell (click, or arrow keys and Enter) to see its ${unit.plural}.`),
    grid(confusion, scored, show), panel];
}

function itemsOf(confusion, scored, truth, predicted) {
  const listed = (confusion.cells || {})[`${truth},${predicted}`];
  if (listed) return listed;
  const { true: truths, predicted: said } = scored.items;
  return truths.flatMap((value, index) => (value === truth && said[index] === predicted ? [index] : []));
}

function grid(confusion, scored, show) {
  const matrix = confusion.matrix;
  const size = matrix.length;
  const cells = [];
  let [row, column] = [0, 0];
  const enter = (toRow, toColumn) => {
    cells[row][column].tabIndex = -1;
    [row, column] = [Math.max(0, Math.min(size - 1, toRow)), Math.max(0, Math.min(size - 1, toColumn))];
    cells[row][column].tabIndex = 0;
    cells[row][column].focus();
  };
  const choose = (atRow, atColumn) => {
    body.querySelectorAll("[aria-selected=true]").forEach((cell) => cell.setAttribute("aria-selected", "false"));
    cells[atRow][atColumn].setAttribute("aria-selected", "true");
    show(atRow, atColumn, matrix[atRow][atColumn] || 0, itemsOf(confusion, scored, atRow, atColumn));
  };
  const key = (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) enter(row + move[0], column + move[1]);
    else if (event.key === "Home") enter(row, 0);
    else if (event.key === "End") enter(row, size - 1);
    else if (event.key === "Enter" || event.key === " ") choose(row, column);
    else return;
    event.preventDefault();
  };
  const body = h("tbody", { keydown: key }, matrix.map((line, truth) => {
    const total = line.reduce((sum, value) => sum + (value || 0), 0);
    cells.push(line.map((value, predicted) => cell(value, total, truth, predicted, size, (event) => {
      if (event.type === "click") {
        enter(truth, predicted);
        choose(truth, predicted);
      }
    })));
    return h("tr", {}, h("th", { scope: "row" }, className(truth), h("small", { class: "muted" }, count(total))), cells[truth]);
  }));
  cells[0][0].tabIndex = 0;
  return h("div", { class: `scroll matrix ${size > 25 ? "small tiny" : size > 12 ? "small" : size > 6 ? "middle" : "wide"}` },
    h("table", { role: "grid", "aria-label": "Confusion matrix" },
      h("thead", {}, h("tr", {}, h("th", { class: "corner" }, h("span", { class: "muted" }, "true \u2193  predicted \u2192")),
        matrix.map((_, index) => h("th", { scope: "col" }, h("span", { class: "head" }, className(index)))))),
      body));
}

function cell(value, total, truth, predicted, size, click) {
  const share = total ? (value || 0) / total : 0;
  const kind = truth === predicted ? "hit" : "miss";
  const words = `${count(value)} of ${visible(classText(truth))} predicted as ${visible(classText(predicted))}`;
  return h("td", {
    role: "gridcell", tabindex: -1, class: value ? `${kind}${share > 0.5 ? " strong" : ""}` : "zero", title: `${words} (${percentage(share)} of the row)`,
    "aria-label": words, "aria-selected": "false", style: { "--share": (value ? 0.1 + 0.9 * share : 0).toFixed(3) }, click,
  }, value ? count(value) : size > 12 ? "" : "0");
}

// Beyond 40 classes: the cells off the diagonal that hold most.
function largestCells(largest, show) {
  const most = Math.max(1, ...largest.map((item) => item[2] || 0));
  const list = h("ol", { class: "confused" });
  const host = h("div", {}, h("p", { class: "lead" }, "The classes that are confused most often. Choose a pair to see it."), list);
  growing(host, largest.length, 10, (at) => {
    const [truth, predicted, total, items] = largest[at];
    list.append(h("li", {}, h("button", { type: "button", click: () => show(truth, predicted, total, items || []) },
      h("span", { class: "pairing" }, className(truth), " \u2192 ", className(predicted)),
      h("span", { class: "measure", "aria-hidden": "true" }, h("span", { style: { width: `${(100 * total) / most}%` } })),
      h("span", { class: "number" }, count(total)))));
  });
  return largest.length ? host : h("p", {}, "No two classes are confused.");
}

const DOTS = 3000; // as many as SVG draws at once without a wait

function predictedByTrue(scored) {
  const { true: truths, predicted } = scored.items;
  const pairs = truths.map((value, index) => [value, predicted[index], index]).filter(([a, b]) => isNumber(a) && isNumber(b));
  if (!pairs.length) return null;
  const step = Math.ceil(pairs.length / DOTS);
  const drawn = pairs.filter((_, index) => index % step === 0);
  const values = pairs.flatMap(([a, b]) => [a, b]);
  const bounds = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [low, high] = padded(bounds, false);
  const entries = drawn.map(([, , index]) => entryOf(scored, index));
  const dots = walkedDots(drawn, (at) => showLarge(entries, at));
  const host = h("div", { class: "chart square" });
  responsive(host, (width) => {
    const ticks = niceTicks(low, high, 6);
    const letters = Math.max(...ticks.map(ticksOf(ticks)).map((text) => text.length));
    const box = [Math.max(52, 7 * letters + 16), width - 14, 28, width - 46];
    const x = axis(low, high, box[0], box[1], { wanted: Math.min(6, (box[1] - box[0]) / (8 * letters + 8)) });
    const y = axis(low, high, box[3], box[2], { wanted: 6 });
    const svg = s("svg", { viewBox: `0 0 ${width} ${width}`, role: "group", "aria-label": "Predicted number by true number", keydown: dots.key });
    frame(svg, x, y, box, { x: "true", y: "predicted" });
    svg.append(s("line", { class: "chance", x1: x.at(low), y1: y.at(low), x2: x.at(high), y2: y.at(high) }));
    const focused = host.contains(document.activeElement);
    svg.append(...dots.draw(drawn.map(([truth, said], at) => {
      const texts = errorTexts(said, truth);
      const words = `${visible(idOf(entries[at].place))}: predicted ${texts.predicted}, true ${texts.truth}, error ${texts.error}`;
      return s("circle", {
        class: "sample", cx: x.at(truth), cy: y.at(said), r: drawn.length > 500 ? 2.5 : 4, role: "button", "aria-label": words,
      }, s("title", {}, words));
    })));
    host.replaceChildren(svg);
    if (focused) dots.focus();
  });
  return [h("p", { class: "lead" }, "Each dot is one ", unit.one, "; on the dashed line the prediction is right. ",
    "Choose a dot (click, or arrow keys and Enter) to see it.",
    step > 1 && ` Drawn are ${count(drawn.length)} of ${count(pairs.length)}.`), host];
}

// Dots of [x, y] of which one can be reached by Tab: left and right go by x, up and down by y, Enter opens.
function walkedDots(points, open) {
  const along = [0, 1].map((axis) => [...points.keys()].sort((a, b) => points[a][axis] - points[b][axis] || points[a][1 - axis] - points[b][1 - axis]));
  const rank = along.map((order) => {
    const of = new Uint32Array(order.length);
    order.forEach((at, index) => (of[at] = index));
    return of;
  });
  let current = along[0][0];
  let circles = [];
  const enter = (at) => {
    circles[current].setAttribute("tabindex", -1);
    current = at;
    circles[current].setAttribute("tabindex", 0);
    circles[current].focus();
  };
  const key = (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) enter(along[move[0]][Math.max(0, Math.min(points.length - 1, rank[move[0]][current] + move[1]))]);
    else if (event.key === "Home") enter(along[0][0]);
    else if (event.key === "End") enter(along[0][points.length - 1]);
    else if (event.key === "Enter" || event.key === " ") open(current);
    else return;
    event.preventDefault();
  };
  const draw = (made) => {
    circles = made;
    circles.forEach((circle, at) => {
      circle.setAttribute("tabindex", at === current ? 0 : -1);
      circle.addEventListener("click", () => {
        enter(at);
        open(at);
      });
    });
    return circles;
  };
  return { key, draw, focus: () => circles[current].focus() };
}

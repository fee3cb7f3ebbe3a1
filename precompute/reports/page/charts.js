// Charts as SVG: lines with intervals, reliability, and the interval of a score. The figures stand below each as a table.

// The same seven shapes mark classes on the map, lines in charts and entries of legends.
function shapePath(shape, r) {
  const a = r * 0.9, t = r * 1.15, d = r * 1.25, p = r * 0.42, q = r * 1.2;
  return [
    `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    `M${-a},${-a}H${a}V${a}H${-a}Z`,
    `M0,${-t}L${t},${t * 0.8}H${-t}Z`,
    `M0,${-d}L${d},0L0,${d}L${-d},0Z`,
    `M${-p},${-q}H${p}V${-p}H${q}V${p}H${p}V${q}H${-p}V${p}H${-q}V${-p}H${-p}Z`,
    `M0,${t}L${t},${-t * 0.8}H${-t}Z`,
    crossPath(p, q),
  ][shape % 7];
}

function crossPath(p, q) {
  const turn = ([x, y]) => `${(x - y) * Math.SQRT1_2},${(x + y) * Math.SQRT1_2}`;
  const corners = [[-p, -q], [p, -q], [p, -p], [q, -p], [q, p], [p, p], [p, q], [-p, q], [-p, p], [-q, p], [-q, -p], [-p, -p]];
  return `M${corners.map(turn).join("L")}Z`;
}

const colorOf = (index) => (COLORS[index % COLORS.length] === "ink" ? "currentColor" : COLORS[index % COLORS.length]);

function swatch(color, shape) {
  return s("svg", { class: "swatch", viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" },
    s("path", { d: shapePath(shape, 5.5), fill: color }));
}

function niceTicks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((value) => value >= raw * 0.999) || raw;
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) ticks.push(+(at * step).toPrecision(12));
  return ticks;
}

// A linear or logarithmic axis over [low, high] onto [start, end] pixels: at(value) and ticks.
function axis(low, high, start, end, { log = false, wanted = 5 } = {}) {
  if (log) {
    const [a, b] = [Math.log10(low), Math.log10(high)];
    const all = [];
    for (let power = Math.floor(a); power <= b; power += 1) all.push(...[1, 2, 5].map((factor) => factor * 10 ** power));
    let ticks = all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    if (ticks.length > wanted + 2) ticks = ticks.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
    return { at: (value) => start + ((Math.log10(value) - a) / (b - a || 1)) * (end - start), ticks, start, end };
  }
  return { at: (value) => start + ((value - low) / (high - low || 1)) * (end - start), ticks: niceTicks(low, high, wanted), start, end };
}

// An axis's range with air around the values; a score in percent stays within 0 and 1.
function padded(values, percent) {
  const found = values.filter(isNumber);
  let low = Math.min(...found), high = Math.max(...found);
  if (!found.length) [low, high] = [0, 1];
  const air = (high - low) * 0.08 || Math.abs(high) * 0.05 || 0.5;
  return percent ? [Math.max(0, low - air), Math.min(1, high + air)] : [low - air, high + air];
}

const ticksOf = (ticks, percent) => (percent ? (value) => `${+(100 * value).toFixed(1)}%` : formatOf(ticks));

function frame(svg, x, y, box, spec) {
  const [left, right, top, bottom] = box;
  const [xText, yText] = [ticksOf(x.ticks, spec.xPercent), ticksOf(y.ticks, spec.percent)];
  for (const tick of y.ticks) {
    svg.append(s("line", { class: "grid", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) }),
      s("text", { class: "tick", x: left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, yText(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(s("line", { class: "axis", x1: x.at(tick), x2: x.at(tick), y1: bottom, y2: bottom + 4 }),
      s("text", { class: "tick", x: x.at(tick), y: bottom + 18, "text-anchor": "middle" }, xText(tick)));
  }
  svg.append(s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    s("text", { class: "label", x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, spec.x || ""),
    s("text", { class: "label", x: left - 44, y: top - 12 }, spec.y || ""));
}

// A curve of the report: {title, x, y, percent, log, by_chance, lines: [{name, points, dashed, mark}]}.
function lineChart(curve) {
  const lines = (curve.lines || []).map((item) => ({ ...item, points: (item.points || []).filter((p) => isNumber(p[0]) && isNumber(p[1])) }));
  const points = lines.flatMap((item) => item.points);
  if (!points.length) return null;
  const xs = points.map((point) => point[0]);
  const log = Boolean(curve.log) && Math.min(...xs) > 0;
  const [low, high] = padded(points.flatMap((point) => [point[1], point[2], point[3]]).concat(curve.by_chance ?? []), curve.percent);
  const host = h("div", { class: "chart" });
  responsive(host, (width) => {
    const height = Math.round(Math.min(300, Math.max(220, width * 0.6)));
    const box = [52, width - 14, 28, height - 46];
    const x = axis(Math.min(...xs), Math.max(...xs), box[0] + 8, box[1] - 8, { log, wanted: width / 70 });
    const y = axis(low, high, box[3], box[2], { wanted: 5 });
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${visible(curve.title || curve.kind)}: ${visible(curve.y || "")} by ${visible(curve.x || "")}` });
    frame(svg, x, y, box, { x: visible(curve.x || ""), y: visible(curve.y || ""), percent: curve.percent });
    if (isNumber(curve.by_chance)) {
      const level = y.at(curve.by_chance);
      svg.append(s("line", { class: "chance", x1: box[0], x2: box[1], y1: level, y2: level }),
        s("text", { class: "tick", x: box[1], y: level - 5, "text-anchor": "end" }, "by chance"));
    }
    lines.forEach((item, index) => svg.append(drawLine(item, index, x, y, curve)));
    host.replaceChildren(svg);
  });
  const legend = lines.length > 1 && h("ul", { class: "legend" },
    lines.map((item, index) => h("li", {}, swatch(colorOf(index), index), named(item.name))));
  const sure = points.some((p) => isNumber(p[2]));
  const rows = lines.flatMap((item) => item.points.map((p) =>
    [named(item.name), number(p[0]), score(p[1], curve.percent), ...(sure ? [interval([p[2], p[3]], curve.percent) || NONE] : [])]));
  return h("figure", { class: "panel" }, h("figcaption", {}, visible(curve.title || curve.kind || "")), host, legend,
    details("The figures", table(["Line", visible(curve.x || "x"), visible(curve.y || "y"), ...(sure ? ["95% interval"] : [])], rows, { numbers: [1, 2, 3] })));
}

function drawLine(item, index, x, y, curve) {
  const color = colorOf(index);
  const group = s("g", { style: { color } });
  const band = item.points.filter((p) => isNumber(p[2]) && isNumber(p[3]));
  if (band.length > 1) {
    const upper = band.map((p) => `${x.at(p[0])},${y.at(p[3])}`);
    const lower = band.map((p) => `${x.at(p[0])},${y.at(p[2])}`).reverse();
    group.append(s("polygon", { class: "band", points: upper.concat(lower).join(" "), fill: color }));
  }
  group.append(s("polyline", {
    points: item.points.map((p) => `${x.at(p[0])},${y.at(p[1])}`).join(" "),
    fill: "none", stroke: color, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": item.dashed ? "6 4" : null,
  }));
  if (isNumber(item.mark)) {
    group.append(s("line", { class: "chance", x1: x.at(item.mark), x2: x.at(item.mark), y1: y.start, y2: y.end }));
  }
  for (const p of item.points.length <= 60 ? item.points : []) {
    const words = `${visible(item.name)}: ${number(p[0])}, ${score(p[1], curve.percent)}`;
    group.append(s("path", { d: shapePath(index, 4), transform: `translate(${x.at(p[0])} ${y.at(p[1])})`, fill: color, class: "dot" },
      s("title", {}, words)));
  }
  return group;
}

const curvesPart = () => {
  const drawn = (report.curves || []).map(lineChart).filter(Boolean);
  return drawn.length ? [h("div", { class: "panels" }, drawn)] : null;
};

// Rows of {name, value, interval} on one axis: a dot and its interval each.
function intervals(rows, percent) {
  const values = rows.flatMap((row) => [row.value, ...(row.interval || [])]);
  const [low, high] = padded(values, percent);
  const host = h("div", { class: "chart intervals" });
  return responsive(host, (width) => {
    const height = 26 * rows.length + 26;
    const x = axis(low, high, 14, width - 14, { wanted: width / 80 });
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": rows.map((row) => `${visible(row.name || "score")}: ${score(row.value, percent)}, ${interval(row.interval, percent)}`).join("; ") });
    const text = ticksOf(x.ticks, percent);
    for (const tick of x.ticks) {
      svg.append(s("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: 0, y2: height - 20 }),
        s("text", { class: "tick", x: x.at(tick), y: height - 5, "text-anchor": "middle" }, text(tick)));
    }
    rows.forEach((row, index) => {
      if (!isNumber(row.value)) return;
      const [y, color] = [26 * index + 14, colorOf(index)];
      const [a, b] = row.interval || [];
      if (isNumber(a) && isNumber(b)) svg.append(s("path", { class: "whisker", stroke: color, d: `M${x.at(a)},${y}H${x.at(b)}M${x.at(a)},${y - 5}v10M${x.at(b)},${y - 5}v10` }));
      svg.append(s("path", { class: "dot", d: shapePath(index, 6), transform: `translate(${x.at(row.value)} ${y})`, fill: color }));
    });
    host.replaceChildren(svg);
  });
}

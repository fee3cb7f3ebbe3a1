// The points of the map as typed arrays, and what is asked of them: the nearest one, those within an outline.

const EXTENT = 65535;
const GREY = 7; // behind the seven colours
const CELLS = 128; // of the grid, on each side

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

function arrayOf(text, type) {
  if (typeof text !== "string") return null;
  const bytes = bytesOf(text);
  const array = new type(bytes.buffer, 0, Math.floor(bytes.length / type.BYTES_PER_ELEMENT));
  return array;
}

// The map of the report decoded, with a grid; null where there is none.
function readMap(map) {
  if (!map || !map.x || !map.y) return null;
  const [x, y] = [arrayOf(map.x, Uint16Array), arrayOf(map.y, Uint16Array)];
  const n = Math.min(x.length, y.length);
  if (!n) return null;
  const label = arrayOf(map.label, map.label_type === "int32" ? Int32Array : Int16Array) || new Int16Array(n).fill(-1);
  const split = arrayOf(map.split, Int8Array) || new Int8Array(n).fill(-1);
  const place = arrayOf(map.place, Uint32Array) || Uint32Array.from({ length: n }, (_, at) => at);
  const right = new Map(Object.entries(map.right || {}).map(([name, text]) => [name, arrayOf(text, Int8Array)]));
  const value = arrayOf(map.value, Float32Array);
  return { n, x, y, box: boxOf(x, y, n), value, label, split, place, right, grid: gridOf(x, y, n), order: shuffled(n) };
}

// What the points cover; at least 1 on each side.
function boxOf(x, y, n) {
  const box = { left: EXTENT, right: 0, top: EXTENT, bottom: 0 };
  for (let at = 0; at < n; at += 1) {
    if (x[at] < box.left) box.left = x[at];
    if (x[at] > box.right) box.right = x[at];
    if (y[at] < box.top) box.top = y[at];
    if (y[at] > box.bottom) box.bottom = y[at];
  }
  return { ...box, wide: Math.max(1, box.right - box.left), tall: Math.max(1, box.bottom - box.top) };
}

// Points by cell: `start` of each cell in `points`, by counting.
function gridOf(x, y, n) {
  const cellOf = (at) => ((y[at] * CELLS) >> 16) * CELLS + ((x[at] * CELLS) >> 16);
  const start = new Uint32Array(CELLS * CELLS + 1);
  for (let at = 0; at < n; at += 1) start[cellOf(at) + 1] += 1;
  for (let cell = 0; cell < CELLS * CELLS; cell += 1) start[cell + 1] += start[cell];
  const points = new Uint32Array(n);
  const next = start.slice();
  for (let at = 0; at < n; at += 1) points[next[cellOf(at)]++] = at;
  return { start, points };
}

// All points in an order without pattern, the same each time: no class is drawn over the others.
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, at) => at);
  let seed = 1;
  for (let at = n - 1; at > 0; at -= 1) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const other = seed % (at + 1);
    [order[at], order[other]] = [order[other], order[at]];
  }
  return order;
}

// The point nearest to (px, py) pixels under `view`, no farther than `reach` pixels, that `seen(point)` admits; or -1.
function nearest(map, view, px, py, reach, seen) {
  const [ax, ay] = [(px - view.bx) / view.ax, (py - view.by) / view.ay];
  const [rx, ry] = [reach / view.ax, reach / view.ay];
  const cell = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor((value * CELLS) / (EXTENT + 1))));
  let [best, found] = [reach * reach, -1];
  for (let row = cell(ay - ry); row <= cell(ay + ry); row += 1) {
    for (let column = cell(ax - rx); column <= cell(ax + rx); column += 1) {
      const at = row * CELLS + column;
      for (let index = map.grid.start[at]; index < map.grid.start[at + 1]; index += 1) {
        const point = map.grid.points[index];
        const [dx, dy] = [(map.x[point] - ax) * view.ax, (map.y[point] - ay) * view.ay];
        const distance = dx * dx + dy * dy;
        if (distance <= best && seen(point)) [best, found] = [distance, point];
      }
    }
  }
  return found;
}

// The point that lies next to `from` in the direction (dx, dy), seen from there within 45 degrees; or -1.
function neighbour(map, view, from, dx, dy, seen) {
  let [best, found] = [Infinity, -1];
  for (let point = 0; point < map.n; point += 1) {
    const px = (map.x[point] - map.x[from]) * view.ax;
    const py = (map.y[point] - map.y[from]) * view.ay;
    const forth = px * dx + py * dy;
    const aside = Math.abs(px * dy - py * dx);
    if (point === from || forth <= 0 || aside > forth || !seen(point)) continue;
    const cost = forth + 2 * aside;
    if (cost < best) [best, found] = [cost, point];
  }
  return found;
}

// Marks the seen points within an outline of [px, py] pixels.
function within(map, view, outline, seen) {
  const marks = new Uint8Array(map.n);
  const corners = outline.map(([px, py]) => [(px - view.bx) / view.ax, (py - view.by) / view.ay]);
  const xs = corners.map((corner) => corner[0]);
  const ys = corners.map((corner) => corner[1]);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let point = 0; point < map.n; point += 1) {
    const [px, py] = [map.x[point], map.y[point]];
    if (px < left || px > right || py < top || py > bottom || !seen(point)) continue;
    let inside = false;
    for (let a = 0, b = corners.length - 1; a < corners.length; b = a, a += 1) {
      const [[ax, ay], [bx, by]] = [corners[a], corners[b]];
      if (ay > py !== by > py && px < ((bx - ax) * (py - ay)) / (by - ay) + ax) inside = !inside;
    }
    if (inside) marks[point] = 1;
  }
  return marks;
}

// How points are grouped and coloured: {entries: [{key, name, color, shape, count}], of: the entry of each point}.
function groupsBy(mode, map, chosen, headName) {
  if (mode === "split") return groups(map, [...splits.keys()].slice(0, GREY), (point) => map.split[point], (key) => splits[key], "no split");
  if (mode === "right") {
    const right = map.right.get(headName);
    const names = { 1: "right", 0: "wrong" };
    return groups(map, [1, 0], (point) => (right ? right[point] : -1), (key) => names[key], "not scored", { 1: [0, 0], 0: [4, 6] });
  }
  if (mode === "number") return groupsByNumber(map);
  if (report.task === "labels") return groupsByLabels(map, chosen);
  const others = classes.length > chosen.length ? "other classes, or none" : "no class";
  return groups(map, chosen, (point) => map.label[point], classText, others);
}

function groups(map, keys, keyOf, nameOf, others, styles = {}) {
  const entries = keys.map((key, index) => ({ key, name: nameOf(key), color: (styles[key] || [index])[0], shape: (styles[key] || [0, index])[1], count: 0 }));
  entries.push({ key: null, name: others, color: GREY, shape: 0, count: 0 });
  const entryOfKey = new Map(keys.map((key, index) => [key, index]));
  const of = new Uint8Array(map.n);
  for (let point = 0; point < map.n; point += 1) {
    of[point] = entryOfKey.get(keyOf(point)) ?? keys.length;
    entries[of[point]].count += 1;
  }
  return { entries, of };
}

// Of several labels: the chosen one that a sample bears, or that it bears several of them.
function groupsByLabels(map, chosen) {
  const several = -2;
  const keyOf = (point) => {
    const found = labelsAt(map, point).filter((label) => chosen.includes(label));
    return found.length > 1 ? several : found.length ? found[0] : -1;
  };
  return groups(map, [...chosen, several], keyOf, (key) => (key === several ? "several of these" : classText(key)), "none of these",
    { [several]: [GREY, 6] });
}

// The class of a point in a list, or all its labels; of several, `map.label` is the rarest alone.
const labelsAt = (map, point) => (report.task === "labels" ? (samples.target || [])[map.place[point]] || [] : [map.label[point]]);

// As the document has it; `map.value` holds it with the seven digits of float32.
function numberAt(map, point) {
  const target = (samples.target || [])[map.place[point]];
  return isNumber(target) || !map.value ? target : map.value[point];
}

function groupsByNumber(map) {
  const targets = Array.from({ length: map.n }, (_, point) => numberAt(map, point));
  const sorted = targets.filter(isNumber).sort((a, b) => a - b);
  const edges = [...new Set([0.2, 0.4, 0.6, 0.8].map((share) => sorted[Math.floor(share * (sorted.length - 1))]))];
  const bins = sorted.length ? [...Array(edges.length + 1).keys()] : [];
  const form = formatOf([sorted[0], ...edges, sorted[sorted.length - 1]]);
  const nameOf = (bin) => {
    const to = form(bin < edges.length ? edges[bin] : sorted[sorted.length - 1]);
    if (bin) return `over ${form(edges[bin - 1])} to ${to}`;
    return form(sorted[0]) === to ? to : `${form(sorted[0])} to ${to}`;
  };
  const keyOf = (point) => (isNumber(targets[point]) ? edges.filter((edge) => targets[point] > edge).length : -1);
  const found = groups(map, bins, keyOf, nameOf, "no number");
  const step = (SCALE.length - 1) / Math.max(1, edges.length);
  for (const entry of found.entries) if (entry.key !== null) entry.color = GREY + 1 + Math.round(entry.key * step);
  return found;
}

// The classes that most points have, as many as there are colours.
function largestClasses(map) {
  const counts = new Map();
  const add = (label) => label >= 0 && counts.set(label, (counts.get(label) || 0) + 1);
  for (let point = 0; point < map.n; point += 1) labelsAt(map, point).forEach(add);
  const room = report.task === "labels" ? GREY - 1 : GREY;
  const largest = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b).slice(0, room);
  return largest.sort((a, b) => a - b);
}

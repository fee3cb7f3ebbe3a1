// Draws points into the pixels of a canvas: stamps of each shape, written straight into memory, 100,000 in milliseconds.

const MARGIN = 24; // pixels around the visible ones, so that a stamp at the edge needs no test

const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const mixed = (a, b, share) => a.map((value, at) => Math.round(value * (1 - share) + b[at] * share));
const fromHex = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));

// The colours of the map as [r, g, b], of the theme that `element` shows.
function paletteOf(element) {
  const style = getComputedStyle(element);
  const [ink, paper] = [rgb(style.color), rgb(style.backgroundColor)];
  const colors = COLORS.map((color) => (color === "ink" ? ink : fromHex(color)));
  const dark = paper[0] + paper[1] + paper[2] < 384;
  const scale = SCALE.map(fromHex).map((color) => (dark ? mixed(color, [255, 255, 255], 0.15) : color));
  return { paper, ink, colors: [...colors, mixed(paper, ink, 0.3), ...scale] };
}

// Coverage, 0 to 1, of a shape and of its rim, by pixel.
function coverage(shape, radius, rim) {
  const reach = Math.ceil(radius * 1.3 + rim);
  const size = 2 * reach + 1;
  const layer = (draw) => {
    const context = h("canvas", { width: size, height: size }).getContext("2d", { willReadFrequently: true });
    context.translate(reach + 0.5, reach + 0.5);
    draw(context, new Path2D(shapePath(shape, radius)));
    return context.getImageData(0, 0, size, size).data.filter((_, at) => at % 4 === 3);
  };
  const body = layer((context, path) => context.fill(path));
  const around = rim ? layer((context, path) => {
    context.lineWidth = 2 * rim;
    context.stroke(path);
  }) : new Uint8Array(body.length);
  return { reach, size, body, around };
}

// A stamp for rows of `width` pixels: whole pixels and their colour, and mixed ones with the share that stays below.
function stampOf(shape, radius, rim, color, paper, width) {
  const { reach, size, body, around } = coverage(shape, radius, rim);
  const [solid, full, edge, keep, tint] = [[], [], [], [], []];
  for (let at = 0; at < body.length; at += 1) {
    const [a, b] = [body[at] / 255, around[at] / 255];
    if (a + b < 0.02) continue;
    const stays = (1 - a) * (1 - b);
    const own = color.map((value, index) => value * a + paper[index] * b * (1 - a));
    const offset = (Math.floor(at / size) - reach) * width + (at % size) - reach;
    if (stays < 0.02) {
      solid.push(offset);
      full.push(packed(own.map(Math.round)));
    } else {
      edge.push(offset);
      keep.push(Math.floor(stays * 255));
      tint.push(packed(own.map(Math.floor)));
    }
  }
  const [places, colors] = [(items) => Int32Array.from(items), (items) => Uint32Array.from(items)];
  return { solid: places(solid), full: colors(full), edge: places(edge), keep: colors(keep), tint: colors(tint) };
}

function stamp(pixels, at, { solid, full, edge, keep, tint }) {
  for (let i = 0; i < solid.length; i += 1) pixels[at + solid[i]] = full[i];
  for (let i = 0; i < edge.length; i += 1) {
    const below = pixels[at + edge[i]];
    const redBlue = (((below & 0xff00ff) * keep[i]) / 256) & 0xff00ff;
    const green = (((below & 0xff00) * keep[i]) >>> 8) & 0xff00;
    pixels[at + edge[i]] = (tint[i] + redBlue + green) | 0xff000000;
  }
}

// A canvas that draws points: paint({map, view, groups, hidden, marks}).
function painter(canvas) {
  const context = canvas.getContext("2d", { alpha: false });
  let image = null, pixels = null, ratio = 1;
  let known = {};
  const resize = (width, height, sharpness) => {
    ratio = sharpness;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    image = context.createImageData(canvas.width + 2 * MARGIN, canvas.height + 2 * MARGIN);
    pixels = new Uint32Array(image.data.buffer);
    known = {};
  };
  const paint = ({ map, view, groups, hidden, marks }) => {
    const palette = paletteOf(canvas);
    const radius = Math.min(7, sizeOf(map.n) * Math.min(2.5, view.zoom ** 0.4)) * ratio;
    const rim = radius >= 3 * ratio ? 0.75 * ratio : 0;
    const key = JSON.stringify([radius.toFixed(2), palette, groups.entries.map(({ color, shape }) => [color, shape])]);
    if (known.key !== key) {
      const make = (fade) => groups.entries.map(({ color, shape }) =>
        stampOf(shape, radius, rim, mixed(palette.colors[color], palette.paper, fade), palette.paper, image.width));
      known = { key, full: make(0), faint: make(0.75) };
    }
    pixels.fill(packed(palette.paper));
    const layers = marks ? [[known.faint, 0], [known.full, 1]] : [[known.full, null]];
    for (const [stamps, mark] of layers) {
      layer(map, view, groups, hidden, marks, mark, stamps, (entry) => entry.color === GREY);
      layer(map, view, groups, hidden, marks, mark, stamps, (entry) => entry.color !== GREY);
    }
    context.putImageData(image, -MARGIN, -MARGIN);
  };
  // One pass over all points: those of the entries that `takes` admits, and with `mark`, those marked so.
  const layer = (map, view, groups, hidden, marks, mark, stamps, takes) => {
    const drawn = Uint8Array.from(groups.entries, (entry, index) => (takes(entry) && !hidden.has(index) ? 1 : 0));
    const [ax, ay, bx, by] = [view.ax * ratio, view.ay * ratio, view.bx * ratio + MARGIN, view.by * ratio + MARGIN];
    const [low, wide, high, width] = [MARGIN / 2, image.width - MARGIN / 2, image.height - MARGIN / 2, image.width];
    for (let index = 0; index < map.n; index += 1) {
      const point = map.order[index];
      const entry = groups.of[point];
      if (!drawn[entry] || (marks && marks[point] !== mark)) continue;
      const px = (map.x[point] * ax + bx) | 0;
      const py = (map.y[point] * ay + by) | 0;
      if (px >= low && px < wide && py >= low && py < high) stamp(pixels, py * width + px, stamps[entry]);
    }
  };
  return { resize, paint };
}

// The radius of a point in CSS pixels, by how many there are.
function sizeOf(n) {
  return [[50000, 1.3], [10000, 2], [2000, 3], [300, 4]].find(([least]) => n > least)?.[1] || 5;
}

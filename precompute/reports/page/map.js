// The map of features: move, zoom, hover, choose, with mouse, touch or keys.

const PAD = 22; // CSS pixels around the points
const STEP = 48; // CSS pixels that one key moves the map by
const ROUGH = 30_000; // points from which the map is drawn less sharply while it moves
const CLICK = 5; // CSS pixels that a click may move

function mapPart() {
  const map = readMap(report.map);
  if (!map) return null;
  const canvas = h("canvas", { class: "points", "aria-hidden": "true" });
  const over = h("canvas", { class: "over", "aria-hidden": "true" });
  const near = h("div", { class: "near", hidden: true });
  const spoken = h("p", { class: "away", role: "status" });
  const hint = h("p", { class: "hint", hidden: true }, "Click the map first, or hold Ctrl, to zoom with the wheel");
  const stage = h("div", {
    class: "stage", tabindex: 0, role: "application", "aria-label": `Map of ${things(map.n)}`, "aria-describedby": "map-keys", "data-points": map.n,
  }, canvas, over, near, hint);
  const at = { width: 1, height: 1, zoom: 1, x: 0, y: 0, current: -1, tool: "move", groups: null, hidden: new Set(), marks: null };
  const { resize, paint } = painter(canvas);
  const { left, top, wide, tall } = map.box;
  const view = () => { // pixels = a * coordinate + b, one scale for both axes, all points in the window at zoom 1
    const scale = Math.min((at.width - 2 * PAD) / wide, (at.height - 2 * PAD) / tall);
    const [x, y] = [(at.width - scale * wide) / 2 - scale * left, (at.height - scale * tall) / 2 - scale * top];
    const a = scale * at.zoom;
    return { ax: a, ay: a, bx: at.x + x * at.zoom, by: at.y + y * at.zoom, zoom: at.zoom };
  };
  const seen = (point) => !at.hidden.has(at.groups.of[point]);
  const spot = (point) => {
    const { ax, ay, bx, by } = view();
    return [map.x[point] * ax + bx, map.y[point] * ay + by];
  };

  let pending = false;
  let sharpness = 0; // pixels for each CSS pixel; 1 while a large map moves
  let moving = null;
  const drawNow = () => {
    pending = false;
    if (at.width < 2) return;
    const wanted = moving && map.n > ROUGH ? 1 : Math.min(2, window.devicePixelRatio || 1);
    if (sharpness !== wanted) resize(at.width, at.height, (sharpness = wanted));
    paint({ map, view: view(), groups: at.groups, hidden: at.hidden, marks: at.marks });
    drawOver();
    stage.dataset.zoom = at.zoom.toFixed(3);
    const { ax, bx, by } = view();
    stage.dataset.view = JSON.stringify([ax, bx, by]);
  };
  const redraw = () => {
    if (!pending) requestAnimationFrame(drawNow);
    pending = true;
  };
  let outline = null;
  const drawOver = () => {
    const context = over.getContext("2d");
    const ratio = over.width / at.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, at.width, at.height);
    context.strokeStyle = getComputedStyle(stage).color;
    context.lineWidth = 2;
    if (at.current >= 0) {
      context.beginPath();
      context.arc(...spot(at.current), 9, 0, 7);
      context.stroke();
    }
    if (outline) {
      context.beginPath();
      outline.forEach((corner) => context.lineTo(...corner));
      context.closePath();
      context.globalAlpha = 0.12;
      context.fillStyle = context.strokeStyle;
      context.fill();
      context.globalAlpha = 1;
      context.setLineDash([5, 4]);
      context.stroke();
      context.setLineDash([]);
    }
  };
  const limit = () => { // some of the map always stays in the window
    clearTimeout(moving);
    moving = setTimeout(() => {
      moving = null;
      redraw();
    }, 200);
    at.zoom = Math.max(1, Math.min(200, at.zoom));
    at.x = Math.max(at.width * (0.5 - at.zoom), Math.min(at.width * 0.5, at.x));
    at.y = Math.max(at.height * (0.5 - at.zoom), Math.min(at.height * 0.5, at.y));
    if (at.zoom === 1) [at.x, at.y] = [0, 0];
    redraw();
    place();
  };
  const zoom = (factor, px = at.width / 2, py = at.height / 2) => {
    const to = Math.max(1, Math.min(200, at.zoom * factor));
    at.x = px - ((px - at.x) * to) / at.zoom;
    at.y = py - ((py - at.y) * to) / at.zoom;
    at.zoom = to;
    limit();
  };
  const pan = (dx, dy) => {
    at.x += dx;
    at.y += dy;
    limit();
  };
  const entry = (point) => ({ place: map.place[point], facts: () => factsOf(map, point) });
  const place = () => { // the card beside its point
    if (at.current < 0) return;
    const [px, py] = spot(at.current);
    const [width, height] = [near.offsetWidth, near.offsetHeight];
    const beside = px + 16 + width > at.width ? px - 16 - width : px + 16;
    near.style.left = `${Math.max(4, Math.min(at.width - width - 4, beside))}px`;
    near.style.top = `${Math.max(4, Math.min(at.height - height - 4, py - height / 2))}px`;
  };
  const show = (point, aloud = false) => {
    if (point !== at.current) {
      at.current = point;
      near.hidden = point < 0;
      stage.dataset.current = point;
      if (point >= 0) {
        const { place: sample, facts } = entry(point);
        put(near, mediaOf(sample), h("div", { class: "facts" }, facts(), named(idOf(sample), "id")));
        if (aloud) spoken.textContent = [...near.querySelectorAll(".line, .id")].map((item) => item.textContent).join(", ");
      }
      drawOver();
    }
    place();
  };
  const open = () => at.current >= 0 && showLarge([entry(at.current)], 0);
  const walk = (dx, dy) => {
    const from = at.current;
    const to = from < 0 ? nearest(map, view(), at.width / 2, at.height / 2, at.width, seen) : neighbour(map, view(), from, dx, dy, seen);
    if (to < 0) return;
    const [px, py] = spot(to);
    if (px < 0 || py < 0 || px > at.width || py > at.height) pan(at.width / 2 - px, at.height / 2 - py);
    show(to, true);
  };

  const chosen = selection(map, (marks) => {
    at.marks = marks;
    redraw();
  });
  const inView = () => within(map, view(), [[0, 0], [at.width, 0], [at.width, at.height], [0, at.height]], seen);
  listen({ stage, at, zoom, pan, limit, walk, show, open, view, seen, map, redraw, drawOver, chosen, inView, hint,
    setOutline: (to) => (outline = to), getOutline: () => outline });

  const legend = h("div");
  const recolor = legendOf(map, legend, at, redraw, chosen);
  document.addEventListener("headchange", () => recolor());
  document.addEventListener("themechange", drawNow);
  const measureStage = () => {
    const room = Math.max(320, Math.min(620, 0.7 * window.innerHeight));
    stage.style.height = `${Math.round(Math.min(room, Math.max(300, (stage.clientWidth * tall) / wide)))}px`;
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    if (!width || !height) return;
    [at.width, at.height] = [width, height];
    sharpness = 0;
    [over.width, over.height] = [width * 2, height * 2];
    limit();
  };
  new ResizeObserver(measureStage).observe(stage);
  const tools = toolbar(at, stage, zoom, limit, () => chosen.set(inView()));
  return [h("p", { class: "lead" }, mapWords()), h("div", { class: "map" }, h("div", {}, tools, stage, spoken), legend),
    details("Keys and gestures", h("p", { id: "map-keys" }, MAP_KEYS)), chosen.panel];
}

const MAP_KEYS = "Arrow keys go from point to point; with Shift they move the map. Plus and minus zoom, 0 shows everything. " +
  "Enter opens the point in large. V selects what is in view, L turns the lasso on and off, Escape clears the selection. " +
  "Mouse: drag to move, wheel to zoom (after a click on the map, or with Ctrl), Shift and drag for the lasso. Touch: one finger moves, two zoom.";

function mapWords() {
  const map = report.map;
  const parts = [map.method && `${visible(map.method)}`, map.layer && `layer ${visible(map.layer)}`,
    isNumber(map.rows) && isNumber(map.of) && map.rows < map.of ? `${visible(map.drawn || "a sample")} of ${count(map.rows)} of ${things(map.of)}` : things(map.rows ?? map.of),
    isNumber(map.perplexity) && `perplexity ${number(map.perplexity)}`, isNumber(map.seed) && `seed ${map.seed}`].filter(Boolean);
  return `${parts.join("; ")}. What lies close together has similar features; distances between groups and the axes have no meaning.`;
}

function factsOf(map, point) {
  const head = heads[state.head];
  const right = head && map.right.get(head.name);
  const value = report.task === "number" ? numberAt(map, point) : null;
  const truth = isNumber(value) ? [exact(value)] : truthOf(map.place[point]) || (map.label[point] >= 0 ? [className(map.label[point])] : null);
  return [
    truth && line({ number: "number", labels: "labels" }[report.task] || "class", truth),
    splits[map.split[point]] !== undefined && line("split", named(splits[map.split[point]])),
    right && right[point] >= 0 && verdictLine(right[point] === 1, [right[point] === 1 ? "right" : "wrong"]),
  ];
}

// Around the map: its events, tools, legend, and the list of what is selected.

function listen({ stage, at, zoom, pan, limit, walk, show, open, view, seen, map, redraw, drawOver, chosen, inView, hint, setOutline, getOutline }) {
  const fingers = new Map();
  let moved = 0, spread = null;
  const local = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left - stage.clientLeft, event.clientY - box.top - stage.clientTop];
  };
  const under = ([px, py], reach) => nearest(map, view(), px, py, reach, seen);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    stage.focus({ preventScroll: true });
    fingers.set(event.pointerId, local(event));
    moved = 0;
    spread = null;
    if (fingers.size > 1) setOutline(null);
    else if (at.tool === "lasso" || event.shiftKey) setOutline([local(event)]);
  });
  stage.addEventListener("pointermove", (event) => {
    const to = local(event);
    const from = fingers.get(event.pointerId);
    if (!from) {
      if (event.pointerType === "mouse") show(under(to, 14));
      return;
    }
    moved += Math.hypot(to[0] - from[0], to[1] - from[1]);
    fingers.set(event.pointerId, to);
    const outline = getOutline();
    if (fingers.size > 1) pinch();
    else if (outline) {
      outline.push(to);
      drawOver();
    } else if (moved > CLICK) {
      stage.classList.add("dragged");
      pan(to[0] - from[0], to[1] - from[1]);
    }
  });
  const pinch = () => {
    const [[ax, ay], [bx, by]] = [...fingers.values()];
    const now = { size: Math.hypot(ax - bx, ay - by) || 1, x: (ax + bx) / 2, y: (ay + by) / 2 };
    if (spread) {
      pan(now.x - spread.x, now.y - spread.y);
      zoom(now.size / spread.size, now.x, now.y);
    }
    spread = now;
  };
  const up = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    stage.classList.remove("dragged");
    spread = null;
    const outline = getOutline();
    setOutline(null);
    if (event.type === "pointercancel") return drawOver();
    if (outline && outline.length > 2 && moved > CLICK) chosen.set(within(map, view(), outline, seen));
    else if (moved <= CLICK && !fingers.size) {
      const point = under(local(event), event.pointerType === "mouse" ? 14 : 24);
      const again = point === at.current;
      show(point);
      if (point >= 0 && (again || event.pointerType === "mouse")) open();
    }
    return drawOver();
  };
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", up);
  stage.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && !fingers.size && show(-1));
  stage.addEventListener("wheel", (event) => {
    if (document.activeElement !== stage && !event.ctrlKey && !event.metaKey) {
      hint.hidden = false;
      clearTimeout(hint.timer);
      hint.timer = setTimeout(() => (hint.hidden = true), 1800);
      return;
    }
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 300 : 1;
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) * 0.0025), ...local(event));
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const middle = at.current >= 0 ? spotOf(map, view(), at.current) : undefined;
    if (way && event.shiftKey) pan(-way[0] * STEP, -way[1] * STEP);
    else if (way) walk(...way);
    else if (event.key === "+" || event.key === "=") zoom(1.4, ...(middle || []));
    else if (event.key === "-" || event.key === "_") zoom(1 / 1.4, ...(middle || []));
    else if (event.key === "0") reset(at, limit);
    else if (event.key === "Enter") open();
    else if (event.key === "v" || event.key === "V") chosen.set(inView());
    else if (event.key === "l" || event.key === "L") setTool(at, stage, at.tool === "lasso" ? "move" : "lasso");
    else if (event.key === "Escape") {
      chosen.set(null);
      show(-1);
    } else return;
    event.preventDefault();
  });
  stage.addEventListener("blur", () => !viewer.open && show(-1));
}

const spotOf = (map, { ax, ay, bx, by }, point) => [map.x[point] * ax + bx, map.y[point] * ay + by];

function reset(at, limit) {
  at.zoom = 1;
  limit();
}

function setTool(at, stage, tool) {
  at.tool = tool;
  stage.dataset.tool = tool;
  document.querySelectorAll("[data-tool-button]").forEach((button) =>
    button.setAttribute("aria-pressed", String(button.dataset.toolButton === tool)));
}

function toolbar(at, stage, zoom, limit, selectView) {
  const button = (label, text, click, more = {}) => h("button", { type: "button", "aria-label": label, title: label, click, ...more }, text);
  stage.dataset.tool = "move";
  return h("div", { class: "tools" },
    h("div", { class: "joined", role: "group", "aria-label": "What dragging does" },
      button("Drag moves the map", "Move", () => setTool(at, stage, "move"), { "data-tool-button": "move", "aria-pressed": "true" }),
      button("Drag draws a lasso around points", "Lasso", () => setTool(at, stage, "lasso"), { "data-tool-button": "lasso", "aria-pressed": "false" })),
    h("div", { class: "joined", role: "group", "aria-label": "Zoom" },
      button("Zoom in", "+", () => zoom(1.6)), button("Zoom out", "\u2212", () => zoom(1 / 1.6)), button("Show everything", "Reset", () => reset(at, limit))),
    button("Select everything in view", "Select view", selectView));
}

// The choice of colours and the legend; returns the function that draws both anew.
function legendOf(map, host, at, redraw, chosen) {
  const modes = [
    report.task === "number" ? ["number", "Number"] : classes.length > 0 && ["class", labelWord === "label" ? "Label" : "Class"],
    splits.length > 0 && ["split", "Split"], map.right.size > 0 && ["right", "Right or wrong"],
  ].filter(Boolean);
  let mode = modes.length ? modes[0][0] : "split";
  let picked = largestClasses(map);
  const recolor = () => {
    at.groups = groupsBy(mode, map, picked, (heads[state.head] || {}).name);
    at.hidden = new Set();
    draw();
    redraw();
  };
  const draw = () => put(host,
    modes.length > 1 ? h("fieldset", { class: "modes" }, h("legend", {}, "Colour by"), modes.map(([key, name]) => h("label", {},
      h("input", { type: "radio", name: "color-by", value: key, checked: key === mode, change: () => {
        mode = key;
        recolor();
        host.querySelector(`input[value="${key}"]`).focus();
      } }), name))) : "",
    h("ul", { class: "legend tall" }, at.groups.entries.flatMap((item, index) => (item.count || item.key !== null ? [row(item, index)] : []))),
    mode === "class" && classes.length > picked.length ? picker() : "");
  const row = (item, index) => h("li", {},
    h("label", {}, h("input", { type: "checkbox", checked: !at.hidden.has(index), "aria-label": `Show ${visible(item.name)}`, change: (event) => {
      if (event.target.checked) at.hidden.delete(index);
      else at.hidden.add(index);
      redraw();
    } }), legendSwatch(item), named(item.name), h("span", { class: "muted" }, count(item.count))),
    h("button", { type: "button", class: "quiet", "aria-label": `Select all: ${visible(item.name)}`, click: () =>
      chosen.set(Uint8Array.from(at.groups.of, (entry) => (entry === index ? 1 : 0))) }, "select"));
  const picker = () => h("label", { class: "field" }, `Colour another ${labelWord} `, h("select", { change: (event) => {
    if (event.target.value === "") return;
    const room = report.task === "labels" ? GREY - 1 : GREY;
    picked = [...picked.slice(picked.length >= room ? 1 : 0), Number(event.target.value)];
    recolor();
    host.querySelector("select")?.focus();
  } }, h("option", { value: "" }, "choose \u2026"), classes.map((name, index) =>
    (picked.includes(index) ? null : h("option", { value: index }, visible(name))))));
  recolor();
  return recolor;
}

function legendSwatch({ color, shape }) {
  const fill = color < GREY ? colorOf(color) : color === GREY ? "var(--faint)" : SCALE[color - GREY - 1];
  return swatch(fill, shape);
}

const SHOWN_IDS = 100_000; // lines that a text field still bears

// What is selected on the map: how many, of which classes, their ids to copy, some pictures.
function selection(map, changed) {
  const panel = h("div", { class: "selection" });
  const idLine = (id) => (/[\r\n]/.test(id) ? JSON.stringify(id) : id);
  const set = (marks) => {
    const points = marks ? [...map.order].filter((point) => marks[point]).sort((a, b) => a - b) : [];
    changed(points.length ? marks : null);
    panel.dataset.selected = points.length;
    if (!points.length) {
      panel.replaceChildren(h("p", { class: "muted" }, `Nothing is selected. Draw a lasso around points to list their ids.`));
      return;
    }
    const ids = points.map((point) => idLine(String(idOf(map.place[point]))));
    const area = h("textarea", { readonly: true, rows: Math.min(10, ids.length + 1), "aria-label": "Ids of the selection", dir: "ltr", spellcheck: "false" });
    area.value = ids.slice(0, SHOWN_IDS).join("\n");
    put(panel,
      h("div", { class: "bar" }, h("h3", {}, `${things(points.length)} selected`),
        copyButton(() => ids.join("\n"), "Copy the ids"), h("button", { type: "button", click: () => set(null) }, "Clear")),
      composition(map, points), area,
      gallery(points.slice(0, 600).filter((point) => mediaOf(map.place[point])).map((point) =>
        ({ place: map.place[point], facts: () => factsOf(map, point) })), 12));
  };
  set(null);
  return { panel, set };
}

function composition(map, points) {
  const counts = new Map();
  for (const point of points) for (const label of labelsAt(map, point)) counts.set(label, (counts.get(label) || 0) + 1);
  const largest = [...counts].filter(([label]) => label >= 0).sort((a, b) => b[1] - a[1]);
  if (!largest.length) return null;
  const rest = largest.slice(8).reduce((sum, item) => sum + item[1], 0);
  return h("p", {}, largest.slice(0, 8).flatMap(([label, total], index) => [index ? ", " : "", className(label), ` ${count(total)}`]),
    rest > 0 && `, others ${count(rest)}`);
}

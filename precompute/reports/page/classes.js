// The table of classes: how many, how well, sorted by any column; of compared heads the recall of each.

const CLASS_ROWS = 25;

function classesPart() {
  const scored = scoredNow() || { per_class: countedClasses() };
  if (!(scored.per_class || []).length) return null;
  const side = compared();
  const rows = scored.per_class;
  const has = (name) => rows.some((row) => isNumber(row[name]));
  const columns = [
    { title: labelWord === "label" ? "Label" : "Class", of: (row) => classText(row.class), show: (row) => className(row.class) },
    ...(heads.length ? [{ title: "Number", of: (row) => row.n, show: (row) => count(row.n), number: true }] : splitColumns(rows)),
  ];
  if (side.length) columns.push(...side.map((head, index) => recallOf(head, index)));
  else if (has("recall")) columns.push({ title: "Recall", of: (row) => row.recall, show: (row) => measure(row.recall, row.recall_interval) });
  for (const [name, title, percent] of [["precision", "Precision", true], ["f1", "F1", true], ["average_precision", "Average precision", true], ["auc", "AUC", false], ["threshold", "Threshold", false]]) {
    if (has(name)) columns.push({ title: side.length ? ofHead(title, heads[state.head]) : title, of: (row) => row[name], show: (row) => score(row[name], percent), number: true });
  }
  const body = h("tbody");
  const host = h("div");
  const heading = h("tr");
  let [by, up] = rows.length > CLASS_ROWS && has("recall") ? [2, true] : [null, true];
  let wanted = "";
  const draw = () => {
    const kept = rows.filter((row) => String(classText(row.class)).toLowerCase().includes(wanted));
    if (by !== null) kept.sort((a, b) => (up ? 1 : -1) * compare(columns[by].of(a), columns[by].of(b)));
    heading.replaceChildren(...columns.map((column, index) => h("th", {
      scope: "col", class: column.number ? "number" : null, "aria-sort": by === index ? (up ? "ascending" : "descending") : null,
    }, h("button", { type: "button", class: "sort", click: () => sort(index) }, column.swatch, column.title,
      h("span", { "aria-hidden": "true" }, by === index ? (up ? " \u25b2" : " \u25bc") : "")))));
    body.replaceChildren();
    foot.replaceChildren();
    growing(foot, kept.length, CLASS_ROWS, (at) => body.append(h("tr", {}, columns.map((column) =>
      h("td", { class: column.number ? "number" : null }, column.show(kept[at]))))));
    if (!kept.length) foot.append(h("p", { class: "muted" }, `No ${labelWord} has this in its name.`));
  };
  const sort = (index) => {
    [by, up] = [index, by === index ? !up : true];
    draw();
    heading.children[index].firstChild.focus();
  };
  const foot = h("div");
  if (rows.length > CLASS_ROWS) {
    host.append(h("label", { class: "field" }, `Find a ${labelWord} `, h("input", {
      type: "search", input: (event) => {
        wanted = event.target.value.toLowerCase();
        draw();
      },
    })));
  }
  host.append(h("div", { class: "scroll" }, h("table", { class: "classes" }, h("thead", {}, heading), body)), foot);
  draw();
  return [side.length > 0 && h("p", { class: "lead" }, "On the split ", named(scored.split), "."), host];
}

const ofHead = (title, head) => named(`${title} of ${shortName(head.name)}`);

// Without heads: how many of each class stand in each split.
const COUNTED = ["Train", "Val", "Test", "Holdout", "Other"];
const countedClasses = () => ((report.counts || {}).per_class || []).map((counts, index) => ({ class: index, counts }));

function splitColumns(rows) {
  return COUNTED.flatMap((title, index) => (rows.some((row) => row.counts[index] > 0)
    ? [{ title, of: (row) => row.counts[index], show: (row) => count(row.counts[index]), number: true }] : []));
}

function compare(a, b) {
  if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
  return (isNumber(a) ? a : Infinity) - (isNumber(b) ? b : Infinity);
}

function recallOf(head, index) {
  const found = new Map(((scoredBy(head) || {}).per_class || []).map((row) => [row.class, row]));
  const value = (row) => found.get(row.class) || {};
  return {
    title: ofHead("Recall", head), swatch: swatch(colorOf(index), index),
    of: (row) => value(row).recall, show: (row) => measure(value(row).recall, value(row).recall_interval, colorOf(index)),
  };
}

// A share as a bar with its interval as a thin line, and in figures.
function measure(value, pair, color = null) {
  if (!isNumber(value)) return NONE;
  const range = pair && isNumber(pair[0]) && isNumber(pair[1]) ? pair : null;
  return h("span", { class: "share", title: range ? `95%: ${interval(pair, true)}` : null },
    h("span", { class: "measure", "aria-hidden": "true" },
      h("span", { style: { width: `${100 * value}%`, ...(color && { background: color }) } }),
      range && h("i", { style: { left: `${100 * range[0]}%`, width: `${100 * (range[1] - range[0])}%` } })),
    h("span", {}, percentage(value)), range && h("small", { class: "muted" }, interval(pair, true)));
}

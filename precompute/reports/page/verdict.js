// The verdict with its interval, and the heads side by side where they are compared.

const compared = () => {
  const names = (report.comparison || {}).heads;
  return names && names.length > 1 ? heads.filter((head) => names.includes(head.name)) : [];
};

// What `head` scored on a split, by default the chosen one; null where it did not score that split.
function scoredBy(head, split = (scoredNow() || {}).split) {
  return head.scored.find((scored) => scored.split === split) || null;
}

function verdictPart() {
  const notes = (report.notes || []).map((note) => h("p", { class: "note" }, visible(note)));
  if (!heads.length) return [notes, h("p", { class: "lead" }, "No head is scored in this report."), countsTiles()];
  const side = compared();
  const head = heads[state.head];
  const scored = scoredNow();
  const verdict = scored.verdict || {};
  const metrics = (scored.metrics || []).filter((metric) => metric.name !== verdict.metric && (metric.text || isNumber(metric.value)));
  const parts = [h("div", { class: "verdict" },
    h("p", { class: "big" }, textOf(verdict), h("small", {}, visible(verdict.metric || ""))),
    h("div", {},
      h("p", { class: "words" }, verdictWords(verdict, scored)),
      h("p", { class: "muted" }, "Head ", named(head.name, "id"), ", split ", named(scored.split), "."),
      !side.length && verdict.interval && isNumber(verdict.value) &&
        intervals([{ name: verdict.metric, value: verdict.value, interval: verdict.interval }], verdict.percent)))];
  if (metrics.length) {
    parts.push(h("ul", { class: "tiles" }, metrics.map((metric) =>
      tile(textOf(metric), visible(metric.name), metric.interval_text ? visible(metric.interval_text) : interval(metric.interval, metric.percent) || null))));
  }
  if (side.length) parts.push(sideBySide(side));
  parts.push(aboutHead(head));
  if (scored.note) parts.push(h("p", { class: "note" }, visible(scored.note)));
  const own = (head.notes || []).map((note) => h("li", {}, capital(visible(note))));
  return [notes, parts, own.length > 0 && h("ul", { class: "remarks" }, own)];
}

// A score as the document words it, so that it reads as the commands print it; else formatted here.
const textOf = (item) => (item.text ? visible(item.text) : score(item.value, item.percent));

function verdictWords(verdict, scored) {
  if (verdict.words) return visible(verdict.words);
  const range = interval(verdict.interval, verdict.percent);
  return `${visible(verdict.metric || "score")} ${score(verdict.value, verdict.percent)} on ${things(scored.n)}${range ? ` (95%: ${range})` : ""}`;
}

function aboutHead(head) {
  const facts = [
    ["Kind", head.kind], ["Layer", head.layer], ["Trained on", isNumber(head.trained_on) ? things(head.trained_on) : null],
    ["Time", isNumber(head.seconds) ? `${number(head.seconds)} s` : null], ["Seed", head.seed], ["Chosen on", head.selected_on],
    ...Object.entries(head.choices || {}),
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return facts.length > 0 && h("dl", { class: "facts-list" }, facts.map(([name, value]) =>
    h("div", {}, h("dt", {}, visible(name).replaceAll("_", " ")), h("dd", {}, named(plain(value))))));
}

// A value of a setting as text: numbers rounded, lists and objects as JSON.
function plain(value) {
  if (isNumber(value)) return number(value);
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}

function countsTiles() {
  const counts = report.counts || {};
  const facts = [[counts.rows, unit.plural], [counts.with_features, "with features"], [counts.failed, "could not be read"], [counts.unlabelled, "without a label"]]
    .filter(([value]) => isNumber(value));
  return facts.length > 0 && h("ul", { class: "tiles" }, facts.map(([value, words]) => tile(count(value), words)));
}

function sideBySide(side) {
  const comparison = report.comparison;
  const rows = side.map((head) => ({ name: head.name, ...(scoredBy(head, comparison.split ?? undefined) || {}).verdict }));
  const percent = rows.some((row) => row.percent);
  const listed = table(["Head", "Kind", "Score", "95% interval"], rows.map((row, index) => [
    h("span", { class: "key" }, swatch(colorOf(index), index), named(row.name, "id")), visible(side[index].kind ?? NONE),
    textOf(row), interval(row.interval, percent) || NONE]), { numbers: [2, 3] });
  const words = (comparison.pairs || []).map((pair) => h("li", {}, visible(pair.words || ""), pairFacts(pair, comparison)));
  const parts = [h("h3", {}, "Heads side by side, on the split ", named(comparison.split ?? "")),
    h("div", { class: "two" }, listed, intervals(rows, percent)), words.length > 0 && h("ul", { class: "plain" }, words)];
  const differ = (comparison.disagree || []).map((item) => ({
    place: item.place,
    facts: () => {
      const form = report.task === "number" ? formatOf([item.true, ...item.predicted]) : null;
      return [...comparison.heads.map((name, index) => disagreement(item, name, index, form)), line("true", oneAnswer(item.true, form))];
    },
  }));
  if (differ.length) {
    const total = comparison.n_disagree ?? differ.length;
    const which = report.task === "number" ? "with the largest differences" : "spread over the file";
    parts.push(details(`Where the heads disagree (${things(total)})`,
      total > differ.length && h("p", { class: "muted" }, `Listed are ${count(differ.length)} of them, ${which}.`), gallery(differ, 12)));
  }
  return h("div", { class: "compare" }, parts);
}

// What the verdict of a pair rests on: the difference with its interval, the test, how many samples, and the notes.
function pairFacts(pair, comparison) {
  const percent = pair.metric === "accuracy";
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + (percent ? (100 * Math.abs(value)).toFixed(1) : number(Math.abs(value)));
  const nameOf = (index) => named((comparison.heads || [])[index] ?? "");
  const range = pair.interval && pair.interval.every(isNumber) && ` (95%: ${pair.interval.map(signed).join(" to ")})`;
  const inGroups = isNumber(pair.groups) ? ` in ${count(pair.groups)} ${pair.groups === 1 ? "group" : "groups"}` : "";
  const left = Object.entries(pair.left_out || {}).map(([why, n]) => `${count(n)} left out: ${visible(why)}`);
  return [
    isNumber(pair.difference) && h("span", { class: "line muted" }, visible(capital(pair.metric || "score")), " of ", nameOf(pair.a), " minus that of ", nameOf(pair.b),
      `: ${signed(pair.difference)}${percent ? " points" : ""}`, range,
      isNumber(pair.p) && `; ${visible(pair.test || "test")}, p = ${String(Number(pair.p.toPrecision(2)))}`,
      isNumber(pair.n) && [`; ${things(pair.n)}${inGroups}`, pair.split && [" of ", named(pair.split)]], "."),
    left.length > 0 && h("span", { class: "line muted" }, `${left.join("; ")}.`),
    (pair.notes || []).map((note) => h("span", { class: "line" }, `${capital(visible(note))}.`)),
  ];
}

function oneAnswer(value, form) {
  if (form) return form(value);
  return Array.isArray(value) ? labelsOf(value) : className(value);
}

function disagreement(item, name, index, form) {
  const said = (item.predicted || [])[index];
  const right = JSON.stringify(said) === JSON.stringify(item.true);
  const words = [h("span", { class: "muted" }, named(shortName(name)), " "), oneAnswer(said, form)];
  return report.task === "number" ? h("span", { class: "line" }, words) : verdictLine(right, words);
}

// Leaks between a scored split and training, and duplicates within the cache, as pictures side by side.

function pairCard(pair, from) {
  const entry = (place, role) => ({
    place,
    facts: () => [line(visible(role), truthOf(place) || "no label")],
  });
  const entries = [entry(pair.a, from), entry(pair.b, "train")];
  const words = pair.kind === "identical" ? "identical bytes" : `similarity ${number(pair.similarity)}`;
  return h("li", { class: "pair" },
    h("p", {}, h("strong", {}, words), pair.same_class === false && h("span", { class: "wrong" }, " \u2717 different labels"),
      pair.same_class === true && h("span", { class: "muted" }, " same label")),
    h("ul", { class: "cards" }, entries.map((_, at) => sideCard(entries, at))));
}

function sideCard(entries, at) {
  if (mediaOf(entries[at].place)) return card(entries, at);
  return h("li", { class: "card blind" }, h("div", { class: "facts" }, entries[at].facts(), named(idOf(entries[at].place), "id")));
}

function groupCard(places) {
  const entries = places.map((place) => ({
    place,
    facts: () => [line(labelWord, truthOf(place) || "none"), splitOf(place) && line("split", named(splitOf(place)))],
  }));
  return h("li", { class: "pair" }, h("ul", { class: "cards" }, entries.map((_, at) => sideCard(entries, at))));
}

function pairs(items, first, make) {
  const host = h("div");
  const list = h("ul", { class: "pairs" });
  host.append(list);
  growing(host, items.length, first, (at) => list.append(make(items[at])));
  return host;
}

function leakWords(scored) {
  const { identical, grouped, near, similarity, without } = scored.leaks;
  const facts = [];
  if (isNumber(identical)) facts.push([count(identical), "byte for byte in the training data"]);
  if (isNumber(near)) facts.push([count(near), `nearly the same as one in training (similarity of at least ${number(similarity)})`]);
  if (isNumber(grouped)) facts.push([count(grouped), "of a group that training has too"]);
  const tiles = h("ul", { class: "tiles" }, facts.map(([value, words]) => tile(value, words)));
  const percent = scored.verdict && scored.verdict.percent;
  const words = without && isNumber(without.value) &&
    h("p", {}, "Without them the score is ", h("strong", {}, score(without.value, percent)),
      interval(without.interval, percent) && ` (95%: ${interval(without.interval, percent)})`,
      isNumber(without.n) && ` on ${things(without.n)}`, ".");
  return [tiles, words];
}

const tile = (value, words, small = null) =>
  h("li", {}, h("strong", {}, value), h("span", {}, words), small && h("small", { class: "muted" }, small));

function leaksPart() {
  const scored = scoredNow();
  const parts = [];
  if (scored && scored.leaks) {
    const found = scored.leaks.pairs || [];
    parts.push(h("p", { class: "lead" }, `${capital(unit.plural)} of the split `, named(scored.split),
      " that the head could know from training make a score look better than it is."));
    parts.push(leakWords(scored));
    if (found.length) parts.push(pairs(found, 8, (pair) => pairCard(pair, scored.split)));
  }
  const duplicates = report.duplicates || {};
  const [two, identical] = [duplicates.two_labels || [], duplicates.identical || []];
  const groupsOf = (listed, all) => `${count(all ?? listed.length)} ${(all ?? listed.length) === 1 ? "group" : "groups"}`;
  if (two.length) {
    parts.push(h("h3", {}, `The same ${unit.one} under two labels (${groupsOf(two, duplicates.n_two_labels)})`), pairs(two, 6, groupCard));
  }
  if (identical.length) {
    parts.push(h("h3", {}, `Identical ${unit.plural} in the cache (${groupsOf(identical, duplicates.n_identical)})`), pairs(identical, 6, groupCard));
  }
  if (report.duplicates && !two.length && !identical.length) {
    parts.push(h("p", { class: "muted" }, `The cache holds no identical ${unit.plural}.`));
  }
  return parts.length ? parts : null;
}

// Samples as cards: a picture, a text or a clip, with what is known of it; and one of them in large.

const media = report.media || {};

// The picture, text or clip of a sample as an element; null where the report carries none.
function mediaOf(place, large = false) {
  const value = (media.of || {})[place];
  if (typeof value !== "string") return null;
  if (media.kind === "text") return h("p", { class: "excerpt", dir: "auto" }, large ? value : value.slice(0, 400));
  if (media.kind === "audio") {
    if (!value.startsWith("data:audio/")) return null;
    return h("audio", { controls: true, preload: "none", src: value, "aria-label": `Clip ${visible(idOf(place))}` });
  }
  if (!value.startsWith("data:image/")) return null;
  return h("img", { src: value, alt: visible(idOf(place)), decoding: "async" });
}

const viewer = h("dialog", { class: "viewer", "aria-labelledby": "viewer-title" });
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
document.body.append(viewer);

// Shows entry `at` of a list of {place, facts} in large; the arrow keys go through the list.
function showLarge(entries, at) {
  const { place, facts } = entries[at];
  const step = (by) => showLarge(entries, (at + by + entries.length) % entries.length);
  const several = entries.length > 1;
  const focused = viewer.open && viewer.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  put(viewer,
    h("header", {},
      h("h2", { id: "viewer-title" }, named(idOf(place), "id")),
      several && h("button", { type: "button", "aria-label": "Previous", click: () => step(-1) }, "\u2190"),
      several && h("span", { class: "muted" }, `${at + 1} of ${count(entries.length)}`),
      several && h("button", { type: "button", "aria-label": "Next", click: () => step(1) }, "\u2192"),
      h("button", { type: "button", "aria-label": "Close", autofocus: true, click: () => viewer.close() }, "\u2715")),
    h("div", { class: "large" }, mediaOf(place, true)),
    h("div", { class: "facts" }, facts(), splitOf(place) && h("p", { class: "muted" }, "Split: ", named(splitOf(place)))));
  viewer.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !several || event.target.tagName === "AUDIO") return;
    event.preventDefault();
    step(by);
  };
  if (!viewer.open) viewer.showModal();
  else [...viewer.querySelectorAll("button")].find((button) => button.getAttribute("aria-label") === (focused || "Close"))?.focus();
}

function card(entries, at) {
  const { place, facts } = entries[at];
  const shown = mediaOf(place);
  const open = { type: "button", class: "open", click: () => showLarge(entries, at) };
  const label = named(idOf(place), "id");
  if (media.kind === "audio") {
    return h("li", { class: "card" }, shown, h("div", { class: "facts" }, facts(), h("button", open, label)));
  }
  return h("li", { class: `card of-${media.kind}` }, h("button", open, shown, h("span", { class: "facts" }, facts(), label)));
}

// Cards of entries {place, facts: () => nodes}, some at first and the others on request; those without media as a list.
function gallery(entries, first = 24) {
  const seen = entries.filter(({ place }) => mediaOf(place));
  const blind = entries.filter(({ place }) => !mediaOf(place));
  const host = h("div", { class: "gallery" });
  if (seen.length) {
    const list = h("ul", { class: "cards" });
    host.append(list);
    growing(host, seen.length, first, (at) => list.append(card(seen, at)));
  }
  if (blind.length) {
    const list = h("ul", { class: "lines" });
    host.append(list);
    growing(host, blind.length, seen.length ? 6 : 12, (at) =>
      list.append(h("li", {}, named(idOf(blind[at].place), "id"), h("span", { class: "facts" }, blind[at].facts()))));
  }
  return host;
}

// Adds `first` items by add(index), and a button that adds more of them.
function growing(host, total, first, add) {
  let shown = 0;
  const more = h("button", { type: "button", class: "more" });
  const grow = (by) => {
    for (const end = Math.min(total, shown + by); shown < end; shown += 1) add(shown);
    more.textContent = `Show more (${count(total - shown)} left)`;
    more.hidden = shown >= total;
  };
  more.addEventListener("click", () => grow(Math.max(first, 48)));
  grow(first);
  if (total > first) host.append(more);
}

// What a head says of item `index`, as nodes for a card.
function answer(scored, index) {
  const items = scored.items;
  const truth = items.true[index];
  const predicted = items.predicted[index];
  if (report.task === "number") {
    const texts = errorTexts(predicted, truth);
    return [line("predicted", texts.predicted), line("true", texts.truth), texts.error !== null && line("error", texts.error)];
  }
  if (report.task === "labels") {
    const missed = (truth || []).filter((label) => !(predicted || []).includes(label));
    const added = (predicted || []).filter((label) => !(truth || []).includes(label));
    const worst = (items.wrong || [])[index];
    const sure = (items.probability || [])[index];
    const said = worst >= 0 && isNumber(sure) && h("span", { class: "line" },
      h("span", { class: "muted" }, `says ${percentage(sure)} for `), className(worst),
      h("span", { class: "muted" }, (truth || []).includes(worst) ? ", which it has" : ", which it has not"));
    if (!missed.length && !added.length) return [verdictLine(true, labelsOf(truth)), said];
    return [
      said,
      added.length > 0 && verdictLine(false, [h("span", { class: "muted" }, "added "), labelsOf(added)]),
      missed.length > 0 && verdictLine(false, [h("span", { class: "muted" }, "missed "), labelsOf(missed)]),
      line("true", labelsOf(truth)),
    ];
  }
  const probability = (items.probability || [])[index];
  const said = [className(predicted), isNumber(probability) && h("span", { class: "muted" }, ` ${percentage(probability)}`)];
  return truth === predicted ? [verdictLine(true, said)] : [verdictLine(false, said), line("true", className(truth))];
}

const line = (label, value) => h("span", { class: "line" }, h("span", { class: "muted" }, `${label} `), value);

function verdictLine(right, nodes) {
  return h("span", { class: `line ${right ? "right" : "wrong"}` },
    h("span", { class: "mark", "aria-hidden": "true" }, right ? "\u2713" : "\u2717"),
    h("span", { class: "away" }, right ? "right: " : "wrong: "), nodes);
}

const entryOf = (scored, index) => ({ place: scored.items.place[index], facts: () => answer(scored, index) });

function mistakesPart() {
  const scored = scoredNow();
  if (!scored || !scored.mistakes || !scored.items) return null;
  if (!scored.mistakes.length) {
    return report.task === "number" ? null : [h("p", {}, `No mistakes: every one of ${things(scored.n)} is right.`)];
  }
  const order = report.task === "number" ? "The largest errors first." : "The most confident first.";
  const notes = [h("p", { class: "lead" }, `${order} A picture opens in large.`.replace("A picture", mediaNoun()))];
  const host = h("div");
  const show = (only) => host.replaceChildren(gallery(
    scored.mistakes.filter((index) => only === null || scored.items.true[index] === only).map((index) => entryOf(scored, index))));
  if (report.task === "classes") {
    const found = [...new Set(scored.mistakes.map((index) => scored.items.true[index]))].sort((a, b) => a - b);
    if (found.length > 1) {
      const pick = (event) => show(event.target.value === "" ? null : Number(event.target.value));
      notes.push(h("label", { class: "field" }, "True class ",
        h("select", { change: pick }, h("option", { value: "" }, "all"),
          found.map((index) => h("option", { value: index }, visible(classText(index)))))));
    }
  }
  show(null);
  return [h("div", { class: "bar" }, notes), host];
}

const mediaNoun = () => ({ text: "A text", audio: "A clip" })[media.kind] || "A picture";

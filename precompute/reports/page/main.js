// The page: parts in their order, the choice of head and split, light and dark.

const PARTS = [
  ["verdict", "Verdict", verdictPart],
  ["confusion", report.task === "number" ? "Predicted and true" : "Confusion matrix", confusionPart],
  ["classes", report.task === "labels" ? "Labels" : "Classes", classesPart],
  ["mistakes", report.task === "number" ? "Largest errors" : "Most confident mistakes", mistakesPart],
  ["leaks", "Leaks and duplicates", leaksPart],
  ["reliability", "Reliability", reliabilityPart],
  ["curves", "Curves", curvesPart],
  ["map", "Map of the features", mapPart],
  ["made", "How it was made", madePart],
];
const FIXED = ["curves", "map", "made"]; // they stay when another head is chosen

function drawParts() {
  const main = document.getElementById("parts");
  const kept = new Map([...main.children].filter((part) => FIXED.includes(part.id)).map((part) => [part.id, part]));
  const drawn = PARTS.flatMap(([id, title, make]) => {
    if (kept.has(id)) return [kept.get(id)];
    const content = main.dataset.drawn && FIXED.includes(id) ? null : make();
    return content ? [h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), content)] : [];
  });
  main.dataset.drawn = "yes";
  main.replaceChildren(...drawn);
  document.getElementById("contents").replaceChildren(...drawn.map((part) =>
    h("li", {}, h("a", { href: `#${part.id}` }, PARTS.find(([id]) => id === part.id)[1]))));
  if (!drawn.length) main.append(h("p", { class: "lead" }, "This report holds nothing but its title."));
  document.dispatchEvent(new Event("headchange"));
}

function choosers() {
  const chooser = document.getElementById("choosers");
  const select = (label, names, chosen, set) => h("label", { class: "field" }, `${label} `, h("select", {
    change: (event) => {
      set(Number(event.target.value));
      drawParts();
      choosers();
      chooser.querySelector(`[data-of="${label}"]`)?.focus();
    }, "data-of": label,
  }, names.map((name, index) => h("option", { value: index, selected: index === chosen }, visible(name)))));
  const splitNames = heads.length ? heads[state.head].scored.map((scored) => scored.split) : [];
  chooser.replaceChildren(...[
    heads.length > 1 && select("Head", heads.map((head) => head.name), state.head, (index) => {
      const split = scoredNow().split;
      state.head = index;
      state.split = Math.max(0, heads[index].scored.findIndex((scored) => scored.split === split));
    }),
    splitNames.length > 1 && select("Split", splitNames, state.split, (index) => (state.split = index)),
  ].filter(Boolean));
}

// Light, dark, or as the system says. Storage may be refused to a file: the choice then lasts as long as the page.
function themes() {
  const names = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  let theme = "auto";
  try {
    theme = localStorage.getItem("precompute-theme") || "auto";
  } catch { /* no storage */ }
  const apply = () => {
    if (!names.includes(theme)) theme = "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    document.dispatchEvent(new Event("themechange"));
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try {
      localStorage.setItem("precompute-theme", theme);
    } catch { /* no storage */ }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  addEventListener("beforeprint", () => { // paper is white: the map, which is pixels, is drawn so
    document.documentElement.dataset.theme = "light";
    document.dispatchEvent(new Event("themechange"));
  });
  addEventListener("afterprint", apply);
  apply();
}

choosers();
drawParts();
themes();
document.documentElement.dataset.ready = "yes";

// Reliability: how often the head is right when it says it is sure, by bins of its probability.

function reliabilityPart() {
  const side = compared();
  const drawn = (side.length ? side.map((head) => [head, scoredBy(head)]) : heads.length ? [[heads[state.head], scoredNow()]] : [])
    .filter(([, scored]) => !scored || (scored.reliability && (scored.reliability.bins || []).some((bin) => bin.n > 0)));
  if (!drawn.some(([, scored]) => scored)) return null;
  return [h("p", { class: "lead" }, "A dot on the dashed line: the head is right as often as it says. Below the line it is too sure. ",
    `Large dots hold many ${unit.plural}.`, side.length > 0 && [" On the split ", named(scoredNow().split), "."]),
  h("div", { class: "panels" }, drawn.map(([head, scored]) => (scored ? diagram(head, scored) : notScored(head))))];
}

const notScored = (head) => h("figure", { class: "panel narrow" }, h("figcaption", {}, named(head.name, "id")),
  h("p", { class: "muted" }, `${NONE} It was not scored on this split.`));

function diagram(head, scored) {
  const { bins, ece, temperature, applied } = scored.reliability;
  const full = bins.filter((bin) => bin.n > 0 && isNumber(bin.accuracy) && isNumber(bin.confidence));
  const most = Math.max(...full.map((bin) => bin.n));
  const host = h("div", { class: "chart square" });
  responsive(host, (width) => {
    const [left, right, top, bottom] = [52, width - 14, 28, width - 40];
    const below = bottom + 60;
    const x = axis(0, 1, left, right, { wanted: 5 });
    const y = axis(0, 1, bottom, top, { wanted: 5 });
    const svg = s("svg", { viewBox: `0 0 ${width} ${below + 46}`, role: "img", "aria-label": `Reliability of ${visible(head.name)}: see the figures below` });
    frame(svg, { ...x, ticks: [] }, y, [left, right, top, bottom], { y: "share that is right", percent: true });
    svg.append(s("line", { class: "chance", x1: x.at(0), y1: y.at(0), x2: x.at(1), y2: y.at(1) }));
    for (const bin of full) {
      const [cx, tall] = [x.at(bin.confidence), Math.max(1, (44 * bin.n) / most)];
      const words = `${things(bin.n)}: says ${percentage(bin.confidence)}, right ${percentage(bin.accuracy)}`;
      if (bin.interval && bin.interval.every(isNumber)) {
        svg.append(s("path", { class: "whisker", stroke: colorOf(0), d: `M${cx},${y.at(bin.interval[0])}V${y.at(bin.interval[1])}` }));
      }
      svg.append(
        s("circle", { class: "dot", cx, cy: y.at(bin.accuracy), r: 3.5 + 5 * Math.sqrt(bin.n / most), fill: colorOf(0) }, s("title", {}, words)),
        s("rect", { class: "count", x: x.at(bin.low) + 1, width: Math.max(1, x.at(bin.high) - x.at(bin.low) - 2), y: below - tall, height: tall }, s("title", {}, words)));
    }
    frame(svg, x, { ticks: [], at: () => 0 }, [left, right, -100, below], { x: "probability that the head gives", xPercent: true });
    svg.append(s("text", { class: "tick", x: left - 8, y: below - 18, "text-anchor": "end" }, unit.plural.slice(0, 7)));
    host.replaceChildren(svg);
  });
  const facts = [isNumber(ece) && `Expected calibration error ${percentage(ece)}`,
    isNumber(temperature) && `temperature ${number(temperature)}${applied === true ? " (applied)" : applied === false ? " (not applied)" : ""}`].filter(Boolean);
  const rows = full.map((bin) => [`${number(100 * bin.low)} to ${number(100 * bin.high)}%`, count(bin.n), percentage(bin.confidence), percentage(bin.accuracy), interval(bin.interval, true) || NONE]);
  return h("figure", { class: "panel narrow" }, h("figcaption", {}, named(head.name, "id")), host,
    facts.length > 0 && h("p", { class: "muted" }, `${facts.join("; ")}.`),
    details("The figures", table(["Probability", "Number", "Mean", "Right", "95% interval"], rows, { numbers: [1, 2, 3, 4] })));
}

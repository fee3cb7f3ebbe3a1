// How the report was made: settings, runs, versions, and every command to run again.

function madePart() {
  const made = report.made_by;
  if (!made) return null;
  const parts = [];
  if ((made.commands || []).length) {
    parts.push(h("h3", {}, "Commands"), made.commands.map((command) => h("div", { class: "command" },
      h("pre", { tabindex: 0 }, h("code", { dir: "ltr" }, visible(command))), copyButton(() => command))));
  }
  const settings = [...(made.settings || [])];
  if (made.source) settings.unshift(["source", made.source]);
  if (made.key) settings.push(["key", made.key]);
  if (settings.length) parts.push(h("h3", {}, "Settings"), pairsTable(settings));
  if (Object.keys(made.weights || {}).length) parts.push(h("h3", {}, "Weights"), pairsTable(Object.entries(made.weights)));
  if ((made.runs || []).length) parts.push(h("h3", {}, "Runs"), runsTable(made.runs));
  if (Object.keys(made.versions || {}).length) parts.push(h("h3", {}, "Versions"), pairsTable(Object.entries(made.versions)));
  return parts.length ? parts : null;
}

const pairsTable = (pairs) => h("dl", { class: "facts-list" }, pairs.map(([name, value]) =>
  h("div", {}, h("dt", {}, visible(name)), h("dd", {}, value === null ? NONE : named(plain(value))))));

function runsTable(runs) {
  const titles = { when: "When", version: "Version", engine: "Engine", device: "Device", precision: "Precision", batch_size: "Batch size", computed: "Computed", seconds: "Seconds", command: "Command" };
  const names = Object.keys(titles).filter((name) => runs.some((run) => run[name] !== null && run[name] !== undefined));
  const numbers = names.flatMap((name, index) => (["batch_size", "computed", "seconds"].includes(name) ? [index] : []));
  return table(names.map((name) => titles[name]), runs.map((run) => names.map((name) => {
    const value = run[name];
    if (value === null || value === undefined) return NONE;
    return name === "command" ? h("code", {}, named(value)) : name === "when" ? named(moment(value), "moment") : isNumber(value) ? number(value) : named(plain(value));
  })), { numbers });
}

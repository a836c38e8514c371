// What the page was given: all runs by column, and the details of some.

const data = JSON.parse($("data").textContent);

/** The value of a column at a run; a column is `all`, or `values`, or `values` by `index`. */
function valueOf(column, run) {
  if (!column) return null;
  if ("all" in column) return column.all;
  return column.index ? column.values[column.index[run]] : column.values[run];
}

const columns = new Map(data.columns.map((column) => [column.key, column]));

/** A figure of a run, by the name it has in metrics.json. */
const figure = (run, key) => valueOf(columns.get(key), run);

/** The values that a column has, in order, each once. */
function distinct(key) {
  const column = columns.get(key);
  if (!column) return [];
  const values = "all" in column ? [column.all] : [...new Set(column.values)];
  return values.filter((value) => value !== null).sort((a, b) => compare(a, b));
}

const runOf = new Map(data.folder.map((name, run) => [name, run]));

const detailScripts = new Map(
  [...document.querySelectorAll("script.details")].map((script) => [Number(script.dataset.run), script]),
);
let common = null;

/** A run's details, with the class names and pictures they refer to; null if it has none. */
function detailsOf(run) {
  const script = detailScripts.get(run);
  if (!script) return null;
  common ??= JSON.parse($("details").textContent);
  const details = JSON.parse(script.textContent);
  const names = new Map(common.names[details.names] ?? []);
  return {
    ...details,
    nameOf: (label) => names.get(label) ?? `class ${label}`,
    pictureOf: (path) => common.pictures[details.pictures[path]] ?? null,
  };
}

/** The settings of a run, [key, value] in order, without those it does not have. */
function settingsOf(run) {
  return Object.entries(data.settings)
    .map(([key, column]) => [key, valueOf(column, run)])
    .filter(([, value]) => value !== null);
}

/** Text that a run is searched in. Made when it is first needed. */
let searched = null;
function haystack(run) {
  searched ??= data.folder.map((folder, each) =>
    [folder, ...["method_title", "variant", "dataset", "backbone"].map((key) => figure(each, key))]
      .join(" ")
      .toLowerCase(),
  );
  return searched[run];
}

/** What the reader filters by, in the tables and among the runs alike. */
const filter = { words: [], dataset: "", method: "", shots: "" };

const hasWords = (text) => filter.words.every((word) => text.includes(word));

function runPasses(run) {
  return (
    (!filter.dataset || figure(run, "dataset") === filter.dataset) &&
    (!filter.method || figure(run, "method_title") === filter.method) &&
    (filter.shots === "" || figure(run, "shots") === Number(filter.shots)) &&
    (!filter.words.length || hasWords(haystack(run)))
  );
}

const shotsName = (shots) => (shots === 0 ? "zero-shot" : counted(shots, "shot"));

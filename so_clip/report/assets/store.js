// The page's data: all runs by column, and the details of some runs.

const data = JSON.parse($("data").textContent);

/** A run's value in a column. A column holds one value of `all` runs, or `values` by run. */
function valueOf(column, run) {
  if (!column) return null;
  return "all" in column ? column.all : column.values[run];
}

const columns = new Map(data.columns.map((column) => [column.key, column]));

/** A run's value by its name in metrics.json. */
const valueAt = (run, key) => valueOf(columns.get(key), run);

/** The distinct values of a column, sorted. */
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

/** A run's details, with functions for class names and thumbnails; null if it has no details. */
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

/** The settings of a run as sorted [key, value] pairs; missing ones are left out. */
function settingsOf(run) {
  return Object.entries(data.settings)
    .map(([key, column]) => [key, valueOf(column, run)])
    .filter(([, value]) => value !== null);
}

/** The text that the search looks in, made on first use. */
let searched = null;
function haystack(run) {
  searched ??= data.folder.map((folder, at) =>
    [folder, ...["method_title", "variant", "dataset", "backbone"].map((key) => valueAt(at, key))]
      .join(" ")
      .toLowerCase(),
  );
  return searched[run];
}

/** The reader's filters, for the tables and the runs. */
const filter = { words: [], dataset: "", method: "", shots: "" };

const hasWords = (text) => filter.words.every((word) => text.includes(word));

function runPasses(run) {
  return (
    (!filter.dataset || valueAt(run, "dataset") === filter.dataset) &&
    (!filter.method || valueAt(run, "method_title") === filter.method) &&
    (filter.shots === "" || valueAt(run, "shots") === Number(filter.shots)) &&
    (!filter.words.length || hasWords(haystack(run)))
  );
}

const shotsName = (shots) => (shots === 0 ? "zero-shot" : counted(shots, "shot"));

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
    labels: [...names.keys()],
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
    [folder, ...["method_title", "variant", "dataset", "backbone"].map((key) => valueAt(at, key)), shotsOf(at), `seed ${valueAt(at, "seed")}`]
      .join(" ")
      .toLowerCase(),
  );
  return searched[run];
}

const SHORT_NAMES = { kappa: "density_ratio", "κ": "density_ratio", t: "optimizer.t", batch: "batch_size" };

/** Return functions that test a text, or a run, for one word of a search: a text, a number, or option=value. */
function searchFor(word) {
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  // A number is found as a whole: 2 finds neither 20 nor 0.2; seed2 does not find seed20.
  const before = /^\d+(\.\d+)?(e[-+]?\d+)?$/.test(word) ? "(?<![\\w.])" : /^\d/.test(word) ? "(?<![\\d.])" : "";
  const after = before === "(?<![\\w.])" ? "(?!\\w|\\.\\d)" : /\d$/.test(word) ? "(?!\\d|\\.\\d)" : "";
  const pattern = new RegExp(`${before}${escaped}${after}`);
  const inText = (text) => pattern.test(text);
  const [, name, wanted] = /^([^=]+)=(.*)$/.exec(word) ?? [];
  const option = SHORT_NAMES[name] ?? name;
  const found = option === undefined ? [] : Object.entries(data.settings).filter(([key]) => `.${key.toLowerCase()}`.endsWith(`.${option}`)).map(([, column]) => column);
  const isWanted = (value) => value !== null && (wanted === "" || String(value).toLowerCase() === wanted || Number(wanted) === value);
  return { inText, inRun: (run) => found.some((column) => isWanted(valueOf(column, run))) || inText(haystack(run)) };
}

/** The reader's filters, for the tables and the runs. */
const filter = { words: [], dataset: "", method: "", shots: "" };

/** The runs of a table's row, by its backbone, shots, method and settings. */
let rowRuns = null;
function runsOf(...row) {
  const keys = ["backbone", "shots", "method_title", "variant"];
  if (!rowRuns) {
    rowRuns = new Map();
    for (let run = 0; run < data.count; run++) {
      const key = JSON.stringify(keys.map((name) => valueAt(run, name)));
      if (!rowRuns.has(key)) rowRuns.set(key, []);
      rowRuns.get(key).push(run);
    }
  }
  return rowRuns.get(JSON.stringify(row)) ?? [];
}

/** Whether a row's text has all words, or one of its runs has those that the text has not. */
function rowPasses(text, runs) {
  const rest = filter.words.filter((word) => !word.inText(text.toLowerCase()));
  return !rest.length || runs().some((run) => rest.every((word) => word.inRun(run)));
}

function runPasses(run) {
  return (
    (!filter.dataset || valueAt(run, "dataset") === filter.dataset) &&
    (!filter.method || valueAt(run, "method_title") === filter.method) &&
    (filter.shots === "" || valueAt(run, "shots") === Number(filter.shots)) &&
    filter.words.every((word) => word.inRun(run))
  );
}

/** What a run classifies: images, or examples of sentences. */
const itemOf = (run) => (valueAt(run, "task") === "sentences" ? "example" : "image");

/** A run's training items in words: "4 shots" are images per class, "32 examples" are all of them. */
function shotsOf(run) {
  const shots = valueAt(run, "shots");
  return shots === 0 ? "zero-shot" : counted(shots, itemOf(run) === "image" ? "shot" : "example");
}

/** A number of shots in the words of the runs that have it. */
function shotsName(shots) {
  const runs = data.folder.map((_, run) => run).filter((run) => valueAt(run, "shots") === shots);
  return [...new Set(runs.map(shotsOf))].join(" or ");
}

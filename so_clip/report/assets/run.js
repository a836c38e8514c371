// The page of one run.

const CARDS = [
  ["accuracy_percent", "Accuracy", 2, " %"],
  ["majority_percent", "Largest class", 2, " %"],
  ["zero_shot_accuracy_percent", "Zero-shot accuracy", 2, " %"],
  ["new_accuracy_percent", "New classes", 2, " %"],
  ["harmonic_mean_percent", "Harmonic mean", 2, " %"],
  ["transfer_accuracy_percent", "Other datasets", 2, " %"],
  ["mean_class_accuracy_percent", "Mean over classes", 2, " %"],
  ["expected_calibration_error_percent", "Calibration error", 2, " %"],
  ["peak_memory_mib", "Peak memory", 1, " MiB"],
  ["train_seconds", "Training", 1, " s"],
  ["train_tflops", "Training", 3, " TFLOP"],
  ["steps", "Steps", 0, ""],
  ["trainable_parameters", "Trained weights", 0, ""],
];

function showRun(name) {
  const section = $("run");
  const run = runOf.get(name);
  if (run === undefined) {
    section.replaceChildren(
      el("h2", { id: "run-title", tabindex: "-1" }, "No such run"),
      el("p", {}, "This report has no run named ", el("code", {}, name), ". ", el("a", { href: "#/runs" }, "All runs")),
    );
    return "No such run";
  }
  const shots = valueAt(run, "shots");
  const parts = [valueAt(run, "method_title"), valueAt(run, "dataset"), ...(shots ? [shotsOf(run), `seed ${valueAt(run, "seed")}`] : [])];
  const title = parts.join(" · ");
  const details = detailsOf(run);
  section.replaceChildren(
    el("p", { class: "crumbs" }, el("a", { href: `#/runs${carried()}` }, "← All runs")),
    el("h2", { id: "run-title", tabindex: "-1" }, ...parts.flatMap((text, at) => [at ? " · " : null, el("span", { class: "whole" }, text)])),
    el("p", { class: "sub" }, ...unbroken([valueAt(run, "backbone"), valueAt(run, "variant")].filter(Boolean).join(" · ")), " ", folderOf(name)),
    cards(run),
    siblings(run),
    ...(details ? detailSections(run, details) : [noDetails(name)]),
    configuration(run, details),
  );
  return title;
}

/** The run's folder: a link if the report knows its place. */
function folderOf(name) {
  const code = el("code", {}, name);
  if (data.results_link === null) return code;
  return el("a", { href: `${data.results_link}/${name.split("/").map(encodeURIComponent).join("/")}/` }, code);
}

function cards(run) {
  const shown = CARDS.filter(([key]) => valueAt(run, key) !== null);
  return el(
    "dl",
    { class: "cards" },
    ...shown.map(([key, title, digits, unit]) =>
      el("div", {}, el("dt", {}, title), el("dd", {}, number(valueAt(run, key), digits), el("small", {}, unit), gain(run, key))),
    ),
    interval(run),
  );
}

/** The 95 % interval of the accuracy over test examples. */
function interval(run) {
  const [low, high] = ["accuracy_low_percent", "accuracy_high_percent"].map((end) => valueAt(run, end));
  if (low === null || high === null) return null;
  return el("div", {}, el("dt", {}, "95 % interval"), el("dd", {}, `${number(low, 1)} to ${number(high, 1)}`, el("small", {}, " %")));
}

/** The gain of adaptation, beside the accuracy. */
function gain(run, key) {
  const before = valueAt(run, "zero_shot_accuracy_percent");
  if (key !== "accuracy_percent" || before === null || !valueAt(run, "shots")) return null;
  const points = valueAt(run, key) - before;
  return el("small", { class: points < 0 ? "worse" : "better" }, ` ${points < 0 ? "−" : "+"}${number(Math.abs(points), 2)} points`);
}

/** The runs that differ only in seed or shots. */
function siblings(run) {
  const keys = ["dataset", "backbone", "method_title", "variant"].filter((key) => columns.has(key));
  const alike = [];
  for (let other = 0; other < data.count; other++)
    if (keys.every((key) => valueAt(other, key) === valueAt(run, key))) alike.push(other);
  if (alike.length < 2) return "";
  const order = (other) => valueAt(other, "shots") * 1e9 + valueAt(other, "seed");
  alike.sort((a, b) => order(a) - order(b));
  const link = (other) => {
    const text = `${shotsOf(other)}, seed ${valueAt(other, "seed")}: ${percent(valueAt(other, "accuracy_percent"))}`;
    return el("li", {}, other === run ? el("b", { "aria-current": "true" }, text) : runLink(other, text));
  };
  return el("details", { class: "siblings" }, el("summary", {}, `Same method, other seeds and ${itemOf(run) === "image" ? "shots" : "numbers of examples"} (${alike.length - 1})`), el("ul", {}, ...alike.map(link)));
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function noDetails(name) {
  const command = ["python", "-m", "so_clip", "report", data.results_dir, "-o", data.out, "--details", name];
  return el(
    "div",
    { class: "note" },
    el(
      "p",
      {},
      `This page has confusion matrix, reliability, classes, curves and mistakes of ${number(detailScripts.size)} of its ${number(data.count)} runs, but not of this one. To add them:`,
    ),
    el("pre", { tabindex: "0" }, command.map(quoted).join(" ")),
  );
}

function part(title, ...children) {
  return el("section", { class: "part" }, el("h3", {}, title), ...children);
}

function detailSections(run, details) {
  const { nameOf } = details;
  const sections = [];
  if (details.history || details.curve) sections.push(part("Training", ...training(run, details)));
  if (details.draw) sections.push(draw(details.draw, nameOf));
  if (details.mistakes) sections.push(itemOf(run) === "image" ? mistakes(details) : wrongExamples(details));
  if (details.confusion) {
    const { left_out: leftOut } = details.confusion;
    const rest = leftOut ? el("p", { class: "hint" }, `${counted(leftOut, itemOf(run))} in rarer pairs of classes are left out.`) : "";
    sections.push(el(
      "div",
      { class: "beside" },
      part("Confusion matrix", confusionMatrix({ ...details.confusion, labels: details.labels, nameOf, item: itemOf(run) }), rest),
      reliability(run, details.reliability),
    ));
  }
  if (details.per_class) sections.push(part("Classes", perClass(details.per_class, nameOf, itemOf(run))));
  if (!sections.length) sections.push(el("p", { class: "note" }, "The run's folder has no predictions.csv, per_class.csv or history.csv that can be read."));
  return sections;
}

function training(run, { history, curve }) {
  const charts = [];
  const ends = (values, digits, unit) => `from ${number(values[0], digits)}${unit} to ${number(values.at(-1), digits)}${unit}`;
  if (history) {
    const losses = history.loss;
    charts.push(figureOf(
      lineChart({ label: `Training loss by step, ${ends(losses, 4, "")}`, xs: history.step, ys: losses, digits: 4, yLabel: "loss" }),
      "Training loss, a moving average over 5 % of the steps.",
    ));
  }
  if (curve) {
    const zeroShot = valueAt(run, "zero_shot_accuracy_percent");
    charts.push(figureOf(
      lineChart({ label: `Test accuracy by step, ${ends(curve.accuracy_percent, 2, " %")}`, xs: curve.step, ys: curve.accuracy_percent, digits: 2, yLabel: "test accuracy (%)", reference: zeroShot }),
      `Test accuracy during training${zeroShot === null ? "" : "; dashed: zero-shot CLIP"}. It is never used for model selection.`,
    ));
  }
  return [el("div", { class: "side" }, ...charts)];
}

const figureOf = (chart, caption) => el("figure", {}, chart, el("figcaption", {}, caption));

function mistakes({ mistakes: worst, nameOf, pictureOf, no_pictures: reason }) {
  if (!worst.length) return part("Most confident mistakes", el("p", {}, "None: every test image is classified correctly."));
  const item = (mistake) => {
    const picture = pictureOf(mistake.path);
    const alt = `${nameOf(mistake.label)}, predicted as ${nameOf(mistake.prediction)}`;
    return el(
      "li",
      {},
      picture ? el("img", { src: picture, alt, class: picture.startsWith("data:image/jpeg") ? "photo" : null, width: 96, height: 96 }) : reason ? null : el("span", { class: "no-picture" }, "no picture"),
      el("p", { class: "truth" }, el("b", {}, nameOf(mistake.label))),
      el("p", { class: "guess" }, `predicted: ${nameOf(mistake.prediction)}, ${percent(100 * mistake.confidence, 1)}`),
      mistake.zero_shot_prediction === undefined ? null : el("p", { class: "before" }, `zero-shot: ${nameOf(mistake.zero_shot_prediction)}`),
      el("p", { class: "path" }, mistake.path),
    );
  };
  return part(
    "Most confident mistakes",
    el("p", { class: "hint" }, "Test images with a wrong prediction of the adapted model, the most confident first."),
    reason ? el("p", { class: "note" }, `The images are not on this machine: ${reason}`) : "",
    el("ul", { class: "gallery" }, ...worst.map(item)),
  );
}

/** The wrong predictions of a run on sentences, by the rows of the dataset's file. */
function wrongExamples({ mistakes: worst, nameOf }) {
  if (!worst.length) return part("Most confident mistakes", el("p", {}, "None: every test example is classified correctly."));
  const table = grid({
    caption: "Test examples with a wrong prediction",
    columns: [
      { key: "row", title: "row", numeric: true, value: ({ row }) => row },
      { key: "class", title: "class", value: ({ label }) => nameOf(label) },
      { key: "predicted", title: "predicted", value: ({ prediction }) => nameOf(prediction) },
      { key: "confidence", title: "confidence (%)", numeric: true, value: ({ confidence }) => confidence, cell: ({ confidence }) => number(100 * confidence, 1) },
    ],
    rows: worst,
    sort: { key: "confidence", down: true },
    page: 12,
    name: "mistake",
  });
  return part("Most confident mistakes", el("p", { class: "hint" }, "A row is the place of the example in the file of the test split, from 0."), table.element);
}

/** The training examples of a run on sentences, by class. */
function draw(drawn, nameOf) {
  const lines = drawn.map(({ label, rows }) => el("li", {}, el("b", {}, `${nameOf(label)} (${number(rows.length)})`), ": ", ...unbroken(rows.join(", "))));
  return part("Training examples", el("p", { class: "hint" }, "A number is the row of the example in the file of the training split, from 0."), el("ul", {}, ...lines));
}

function reliability(run, { adapted, zero_shot: zeroShot }) {
  const items = `${itemOf(run)}s`;
  const bins = adapted.images.map((_, bin) => bin);
  const edge = (bin) => `${Math.round((100 * bin) / bins.length)}–${Math.round((100 * (bin + 1)) / bins.length)} %`;
  const column = (key, title, source, field, digits) => ({ key, title, numeric: true, value: (bin) => source[field][bin], cell: (bin) => number(source[field][bin], digits) });
  const table = grid({
    caption: "Reliability by confidence",
    columns: [
      { key: "bin", title: "confidence", value: (bin) => bin, cell: edge },
      column("images", items, adapted, "images", 0),
      column("accuracy", "accuracy (%)", adapted, "accuracy_percent", 1),
      column("confidence", "mean confidence (%)", adapted, "confidence_percent", 1),
      ...(zeroShot
        ? [
            column("z-images", `zero-shot: ${items}`, zeroShot, "images", 0),
            column("z-accuracy", "zero-shot: accuracy (%)", zeroShot, "accuracy_percent", 1),
            column("z-confidence", "zero-shot: mean confidence (%)", zeroShot, "confidence_percent", 1),
          ]
        : []),
    ],
    rows: bins,
    name: "bin",
  });
  const error = percent(valueAt(run, "expected_calibration_error_percent"));
  return part(
    "Reliability",
    figureOf(
      reliabilityDiagram({ label: `Reliability diagram in ${bins.length} bins; expected calibration error ${error}. The numbers are in the table below.`, adapted, zeroShot, item: itemOf(run) }),
      `Bars: the adapted model's accuracy by confidence. ${zeroShot ? "Lines: zero-shot CLIP. " : ""}Dashed: perfect calibration. Below: the share of ${items} in each bin.`,
    ),
    el("details", {}, el("summary", {}, "Numbers of the diagram"), table.element),
  );
}

function perClass(columnsOf, nameOf, item) {
  const rows = columnsOf.label.map((label, at) => ({
    label,
    name: nameOf(label),
    images: columnsOf.images[at],
    before: columnsOf.zero_shot_accuracy_percent?.[at] ?? null,
    after: columnsOf.accuracy_percent[at],
  }));
  const hasZeroShot = columnsOf.zero_shot_accuracy_percent !== undefined;
  const change = (row) => (row.before === null || row.after === null ? null : row.after - row.before);
  const signed = (value) => (value === null ? MISSING : `${value < 0 ? "−" : "+"}${number(Math.abs(value), 1)}`);
  const bar = (value) => {
    if (value === null) return MISSING;
    const box = el("span", { class: "meter" }, number(value, 1));
    box.style.setProperty("--part", `${value}%`);
    return box;
  };
  return grid({
    caption: "Accuracy by class",
    columns: [
      { key: "name", title: "class", value: (row) => row.name },
      { key: "label", title: "label", numeric: true, value: (row) => row.label },
      { key: "images", title: `${item}s`, numeric: true, value: (row) => row.images },
      ...(hasZeroShot ? [{ key: "before", title: "zero-shot (%)", numeric: true, value: (row) => row.before, cell: (row) => number(row.before, 1) }] : []),
      { key: "after", title: "accuracy (%)", numeric: true, value: (row) => row.after, cell: (row) => bar(row.after) },
      ...(hasZeroShot ? [{ key: "change", title: "change", numeric: true, value: change, cell: (row) => signed(change(row)) }] : []),
    ],
    rows,
    sort: { key: "label", down: false },
    page: 50,
    name: "row",
  }).element;
}

function configuration(run, details) {
  const rows = settingsOf(run);
  const settings = grid({
    caption: "Settings of the run",
    columns: [
      { key: "option", title: "option", value: ([key]) => key, cell: ([key]) => el("code", {}, ...unbroken(key)) },
      { key: "value", title: "value", value: ([, value]) => String(value), cell: ([, value]) => unbroken(value) },
    ],
    rows,
    page: 200,
    name: "option",
    wraps: true,
  });
  return part("Configuration", settings.element, ...(details ? [provenance(details.provenance)] : []));
}

function provenance(values) {
  if (!values || !Object.keys(values).length) return "";
  const command = Array.isArray(values.command) ? values.command.map((argument) => quoted(String(argument))).join(" ") : null;
  const flat = Object.entries(values).flatMap(([key, value]) =>
    key === "command" ? [] : value && typeof value === "object" ? Object.entries(value).map(([inner, innerValue]) => [`${key}.${inner}`, innerValue]) : [[key, value]],
  );
  return el(
    "details",
    {},
    el("summary", {}, "Provenance"),
    command ? el("pre", { tabindex: "0", "aria-label": "Command" }, command) : "",
    el("dl", { class: "pairs" }, ...flat.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, ...unbroken(value ?? MISSING))])),
  );
}

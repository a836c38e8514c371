// The charts of a run's page, drawn as SVG in the page's colours.

const HEIGHT = 300;
// A chart is drawn at its shown width, so its text has the size of other text.
const chartWidth = () => Math.min(620, Math.max(300, $("main").clientWidth - 30));
const FRAME = { left: 52, right: 14, top: 14, bottom: 40 };

/** About `count` round numbers between low and high. */
function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-6; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

const tickText = (value) => (Math.abs(value) >= 1000 ? number(value) : String(Number(value.toPrecision(6))));

/** Axes with a grid; x and y map values to coordinates. */
function axes({ x, y, xTicks, yTicks, xLabel, yLabel, width, height }) {
  const bottom = height - FRAME.bottom;
  const right = width - FRAME.right;
  const text = (content, properties) => svg("text", { class: "tick", ...properties }, content);
  return svg(
    "g",
    { "aria-hidden": "true" },
    ...yTicks.map((value) => svg("line", { class: "grid-line", x1: FRAME.left, x2: right, y1: y(value), y2: y(value) })),
    ...yTicks.map((value) => text(tickText(value), { x: FRAME.left - 7, y: y(value) + 4, "text-anchor": "end" })),
    ...xTicks.map((value) => svg("line", { class: "grid-line", x1: x(value), x2: x(value), y1: FRAME.top, y2: bottom })),
    ...xTicks.map((value) => text(tickText(value), { x: x(value), y: bottom + 16, "text-anchor": "middle" })),
    svg("line", { class: "axis", x1: FRAME.left, x2: right, y1: bottom, y2: bottom }),
    text(xLabel, { class: "axis-label", x: (FRAME.left + right) / 2, y: height - 6, "text-anchor": "middle" }),
    text(yLabel, { class: "axis-label", "text-anchor": "middle", transform: `translate(13 ${(FRAME.top + bottom) / 2}) rotate(-90)` }),
  );
}

/** One curve over steps, with a dashed line at `reference` unless it is null. */
function lineChart({ label, xs, ys, yLabel, reference = null }) {
  const width = chartWidth();
  const points = xs.map((value, at) => [value, ys[at]]).filter(([, value]) => value !== null);
  const values = points.map(([, value]) => value).concat(reference === null ? [] : [reference]);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.06 || 1;
  [low, high] = [low - margin, high + margin];
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const x = (value) => FRAME.left + ((value - first) / (last - first || 1)) * (width - FRAME.left - FRAME.right);
  const y = (value) => HEIGHT - FRAME.bottom - ((value - low) / (high - low)) * (HEIGHT - FRAME.top - FRAME.bottom);
  const path = points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const few = points.length <= 30;
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label },
    axes({ x, y, xTicks: ticks(first, last, width < 450 ? 4 : 6), yTicks: ticks(low, high), xLabel: "step", yLabel, width, height: HEIGHT }),
    reference === null ? null : svg("line", { class: "reference", x1: FRAME.left, x2: width - FRAME.right, y1: y(reference), y2: y(reference) }),
    svg("path", { class: "curve", d: path }),
    ...(few ? points.map(([step, value]) => svg("circle", { class: "point", cx: x(step), cy: y(value), r: 3.5 }, svg("title", {}, `step ${number(step)}: ${tickText(value)}`))) : []),
  );
}

const SIDE = 340;
const COUNTS = 54;

/**
 * The accuracy of predictions by their confidence, in bins; below it, the number of images.
 * Bars: the adapted model. Lines: zero-shot CLIP. Dashed: perfect calibration.
 */
function reliabilityDiagram({ label, adapted, zeroShot }) {
  const inner = SIDE - FRAME.left - FRAME.right;
  const top = FRAME.top;
  const place = (share) => FRAME.left + (share / 100) * inner;
  const height = (share) => top + inner - (share / 100) * inner;
  const bins = adapted.images.length;
  const edge = (bin) => place((100 * bin) / bins);
  const most = Math.max(...adapted.images);
  const base = top + inner + 30 + COUNTS;
  const all = adapted.images.reduce((sum, images) => sum + images, 0);
  const description = (bin) =>
    `confidence ${Math.round((100 * bin) / bins)} to ${Math.round((100 * (bin + 1)) / bins)} %: ` +
    `${counted(adapted.images[bin], "image")}, ${percent(adapted.accuracy_percent[bin], 1)} correct`;
  const bars = adapted.images.flatMap((images, bin) => {
    if (!images) return [];
    const share = adapted.accuracy_percent[bin];
    const width = edge(1) - edge(0) - 1;
    const tall = (COUNTS * images) / most;
    return [
      svg("rect", { class: "bar", x: edge(bin) + 0.5, y: height(share), width, height: Math.max(0.8, height(0) - height(share)) }, svg("title", {}, description(bin))),
      svg("rect", { class: "count", x: edge(bin) + 0.5, y: base - tall, width, height: tall }, svg("title", {}, description(bin))),
    ];
  });
  const steps = zeroShot.accuracy_percent
    .map((share, bin) => (share === null ? null : `M${edge(bin).toFixed(1)} ${height(share).toFixed(1)}H${edge(bin + 1).toFixed(1)}`))
    .filter(Boolean)
    .join("");
  return svg(
    "svg",
    { class: "chart reliability", viewBox: `0 0 ${SIDE} ${base + 34}`, role: "img", "aria-label": label },
    axes({
      x: place,
      y: height,
      xTicks: [0, 20, 40, 60, 80, 100],
      yTicks: [0, 20, 40, 60, 80, 100],
      xLabel: "",
      yLabel: "accuracy (%)",
      width: SIDE,
      height: top + inner + FRAME.bottom,
    }),
    ...bars,
    svg("line", { class: "diagonal", x1: place(0), y1: height(0), x2: place(100), y2: height(100) }),
    svg("path", { class: "zero-shot", d: steps }),
    svg("line", { class: "axis", x1: place(0), x2: place(100), y1: base, y2: base }),
    svg("text", { class: "tick", x: FRAME.left - 7, y: base - COUNTS + 8, "text-anchor": "end" }, percent((100 * most) / all, 0)),
    svg("text", { class: "tick", x: FRAME.left - 7, y: base, "text-anchor": "end" }, "0"),
    svg("text", { class: "axis-label", x: FRAME.left + inner / 2, y: base + 22, "text-anchor": "middle" }, "confidence (%), and its share of images"),
  );
}

// A confusion matrix with more classes is drawn as a picture without names.
const NAMED = 24;

/** The confusion matrix from a flat list of [label, prediction, images] triples. */
function confusionMatrix({ triples, nameOf }) {
  const cells = new Map();
  const sums = new Map();
  const labels = new Set();
  for (let at = 0; at < triples.length; at += 3) {
    const [label, prediction, images] = triples.slice(at, at + 3);
    cells.set(`${label} ${prediction}`, images);
    sums.set(label, (sums.get(label) ?? 0) + images);
    labels.add(label).add(prediction);
  }
  const classes = [...labels].sort((a, b) => a - b);
  const share = (label, prediction) => (cells.get(`${label} ${prediction}`) ?? 0) / (sums.get(label) || 1);
  const draw = classes.length <= NAMED ? namedMatrix : pictureMatrix;
  return draw({ classes, nameOf, share, images: (label, prediction) => cells.get(`${label} ${prediction}`) ?? 0 });
}

function namedMatrix({ classes, nameOf, share, images }) {
  const cell = (label, prediction) => {
    const count = images(label, prediction);
    const td = el("td", { class: label === prediction ? "right" : "wrong" }, count ? String(count) : el("span", { class: "none" }, "0"));
    td.style.setProperty("--share", share(label, prediction).toFixed(3));
    return td;
  };
  const table = el(
    "table",
    { class: "confusion" },
    el("caption", {}, "Images by class (rows) and predicted class (columns)"),
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }, "class \\ predicted"), ...classes.map((prediction) => el("th", { scope: "col" }, el("span", {}, nameOf(prediction)))))),
    el("tbody", {}, ...classes.map((label) => el("tr", {}, el("th", { scope: "row" }, nameOf(label)), ...classes.map((prediction) => cell(label, prediction))))),
  );
  return scrollBox("Confusion matrix", table);
}

function pictureMatrix({ classes, nameOf, share, images }) {
  const pixels = Math.max(1, Math.floor(700 / classes.length));
  const side = pixels * classes.length;
  const canvas = el("canvas", {
    class: "confusion",
    width: side,
    height: side,
    role: "img",
    "aria-label": `Confusion matrix of ${classes.length} classes; the most frequent confusions are in the table below it`,
  });
  const context = canvas.getContext("2d");
  classes.forEach((label, row) =>
    classes.forEach((prediction, column) => {
      const fraction = share(label, prediction);
      if (!fraction) return;
      context.fillStyle = label === prediction ? `rgba(40, 140, 210, ${0.15 + 0.85 * fraction})` : `rgba(230, 95, 20, ${0.25 + 0.75 * fraction})`;
      context.fillRect(column * pixels, row * pixels, pixels, pixels);
    }),
  );
  const hint = el("p", { class: "hint", "aria-hidden": "true" }, "Rows: class. Columns: predicted class. Point at a cell to read it.");
  canvas.addEventListener("mousemove", (event) => {
    const at = (place, size) => classes[Math.min(classes.length - 1, Math.max(0, Math.floor((place / size) * classes.length)))];
    const [label, prediction] = [at(event.offsetY, canvas.clientHeight), at(event.offsetX, canvas.clientWidth)];
    hint.textContent = `${nameOf(label)} predicted as ${nameOf(prediction)}: ${counted(images(label, prediction), "image")}`;
  });
  const wrong = classes.flatMap((label) =>
    classes.filter((prediction) => prediction !== label && images(label, prediction)).map((prediction) => [label, prediction]),
  );
  const list = grid({
    caption: "Most frequent confusions",
    columns: [
      { key: "class", title: "class", value: ([label]) => nameOf(label) },
      { key: "predicted", title: "predicted", value: ([, prediction]) => nameOf(prediction) },
      { key: "images", title: "images", numeric: true, value: (pair) => images(...pair) },
      { key: "share", title: "of the class (%)", numeric: true, value: (pair) => 100 * share(...pair), cell: (pair) => number(100 * share(...pair), 1) },
    ],
    rows: wrong,
    sort: { key: "images", down: true },
    page: 15,
    name: "pair",
    wraps: true,
  });
  return el("div", {}, canvas, hint, list.element);
}

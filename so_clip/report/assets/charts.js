// The charts of a run's page, drawn as SVG in the page's colours.

const HEIGHT = 300;
// A chart is drawn at its shown width, so its text has the size of other text.
const chartWidth = () => Math.min(620, Math.max(300, $("main").clientWidth - 30));
const FRAME = { left: 52, right: 14, top: 14, bottom: 40 };

/** About `count` round numbers between low and high, and the decimals that they need. */
function ticks(low, high, count = 5, whole = false) {
  const raw = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const found = [1, 2, 2.5, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= raw * 0.999);
  const step = whole ? Math.max(1, found === 2.5 ? 2 : Math.round(found)) : found;
  const values = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-6; at++) values.push(Number((at * step).toPrecision(12)));
  const digits = [0, 1, 2, 3, 4, 5, 6].find((decimals) => Math.abs(step - Number(step.toFixed(decimals))) < step * 1e-6) ?? 7;
  return { values, digits };
}

/** Axes with a grid; x and y map values to coordinates. */
function axes({ x, y, xTicks, yTicks, xLabel, yLabel, width, height }) {
  const bottom = height - FRAME.bottom;
  const right = width - FRAME.right;
  const text = (content, properties) => svg("text", { class: "tick", ...properties }, content);
  return svg(
    "g",
    { "aria-hidden": "true" },
    ...yTicks.values.map((value) => svg("line", { class: "grid-line", x1: FRAME.left, x2: right, y1: y(value), y2: y(value) })),
    ...yTicks.values.map((value) => text(number(value, yTicks.digits), { x: FRAME.left - 7, y: y(value) + 4, "text-anchor": "end" })),
    ...xTicks.values.map((value) => svg("line", { class: "grid-line", x1: x(value), x2: x(value), y1: FRAME.top, y2: bottom })),
    ...xTicks.values.map((value) => text(number(value, xTicks.digits), { x: x(value), y: bottom + 16, "text-anchor": "middle" })),
    svg("line", { class: "axis", x1: FRAME.left, x2: right, y1: bottom, y2: bottom }),
    text(xLabel, { class: "axis-label", x: (FRAME.left + right) / 2, y: height - 6, "text-anchor": "middle" }),
    text(yLabel, { class: "axis-label", "text-anchor": "middle", transform: `translate(13 ${(FRAME.top + bottom) / 2}) rotate(-90)` }),
  );
}

/** One curve over steps, with a dashed line at `reference` unless it is null. `digits` are those of the values. */
function lineChart({ label, xs, ys, digits, yLabel, reference = null }) {
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
    axes({ x, y, xTicks: ticks(first, last, width < 450 ? 4 : 6, true), yTicks: ticks(low, high), xLabel: "step", yLabel, width, height: HEIGHT }),
    reference === null ? null : svg("line", { class: "reference", x1: FRAME.left, x2: width - FRAME.right, y1: y(reference), y2: y(reference) }),
    svg("path", { class: "curve", d: path }),
    ...(few ? points.map(([step, value]) => svg("circle", { class: "point", cx: x(step), cy: y(value), r: 3.5 }, svg("title", {}, `step ${number(step)}: ${number(value, digits)}`))) : []),
  );
}

const SIDE = 340;
const COUNTS = 54;

/**
 * The accuracy of predictions by their confidence, in bins; below it, the number of test items, each an `item`.
 * Bars: the adapted model. Lines: zero-shot CLIP, if there is a text tower. Dashed: perfect calibration.
 */
function reliabilityDiagram({ label, adapted, zeroShot, item }) {
  const inner = SIDE - FRAME.left - FRAME.right;
  const top = FRAME.top;
  const place = (share) => FRAME.left + (share / 100) * inner;
  const height = (share) => top + inner - (share / 100) * inner;
  const bins = adapted.images.length;
  const edge = (bin) => place((100 * bin) / bins);
  const most = Math.max(...adapted.images);
  const base = top + inner + 30 + COUNTS;
  const all = adapted.images.reduce((sum, images) => sum + images, 0);
  const shares = { values: [0, 20, 40, 60, 80, 100], digits: 0 };
  const description = (bin) =>
    `confidence ${Math.round((100 * bin) / bins)} to ${Math.round((100 * (bin + 1)) / bins)} %: ` +
    `${counted(adapted.images[bin], item)}, ${percent(adapted.accuracy_percent[bin], 1)} correct`;
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
  const steps = (zeroShot?.accuracy_percent ?? [])
    .map((share, bin) => (share === null ? null : `M${edge(bin).toFixed(1)} ${height(share).toFixed(1)}H${edge(bin + 1).toFixed(1)}`))
    .filter(Boolean)
    .join("");
  return svg(
    "svg",
    { class: "chart reliability", viewBox: `0 0 ${SIDE} ${base + 34}`, role: "img", "aria-label": label },
    axes({
      x: place,
      y: height,
      xTicks: shares,
      yTicks: shares,
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
    svg("text", { class: "axis-label", x: FRAME.left + inner / 2, y: base + 22, "text-anchor": "middle" }, `confidence (%), and its share of ${item}s`),
  );
}

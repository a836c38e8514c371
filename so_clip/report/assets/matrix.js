// The confusion matrix: a table for a few classes, a picture that can be enlarged for more.

// A matrix with more classes is drawn as a picture without names.
const NAMED = 30;
// The side of the picture's box, in pixels, on a wide screen.
const BOX = 640;

/**
 * The confusion matrix of all classes.
 *
 * triples: a flat list of [label, prediction, images]; totals: a flat list of [label, images] with
 * all images of a class, also those in pairs that `triples` leaves out. labels: the classes with names. item: what
 * is counted, an image or an example.
 */
function confusionMatrix({ triples, totals, labels, nameOf, item }) {
  const cells = [];
  for (let at = 0; at < triples.length; at += 3) cells.push({ label: triples[at], prediction: triples[at + 1], images: triples[at + 2] });
  const sums = new Map();
  for (let at = 0; at < totals.length; at += 2) sums.set(totals[at], totals[at + 1]);
  const classes = [...new Set([...labels, ...cells.flatMap(({ label, prediction }) => [label, prediction])])].sort((a, b) => a - b);
  for (const cell of cells) cell.share = cell.images / sums.get(cell.label);
  const draw = classes.length <= NAMED ? namedMatrix : pictureMatrix;
  return draw({ classes, cells, nameOf, item });
}

function namedMatrix({ classes, cells, nameOf, item }) {
  const byPlace = new Map(cells.map((cell) => [`${cell.label} ${cell.prediction}`, cell]));
  const tableCell = (label, prediction) => {
    const found = byPlace.get(`${label} ${prediction}`);
    const td = el("td", { class: label === prediction ? "right" : "wrong" }, found ? number(found.images) : el("span", { class: "none" }, "0"));
    td.style.setProperty("--share", (found?.share ?? 0).toFixed(3));
    return td;
  };
  const names = classes.map(nameOf);
  // Long names of many columns stand on their side, so that the columns stay narrow.
  const onSide = names.join("").length > 40 && classes.length > 4;
  const table = el(
    "table",
    { class: onSide ? "confusion on-side" : "confusion" },
    el("caption", {}, `${item === "image" ? "Images" : "Examples"} by class (rows) and predicted class (columns)`),
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }, "class \\ predicted"), ...names.map((name) => el("th", { scope: "col", title: name }, el("span", {}, name))))),
    el("tbody", {}, ...classes.map((label, row) => el("tr", {}, el("th", { scope: "row", title: names[row] }, el("span", {}, names[row])), ...classes.map((prediction) => tableCell(label, prediction))))),
  );
  const box = scrollBox("Confusion matrix", table);
  box.classList.add("matrix");
  return box;
}

function pictureMatrix({ classes, cells, nameOf, item }) {
  const count = classes.length;
  const canvas = el("canvas", {
    class: "confusion",
    width: count,
    height: count,
    role: "img",
    "aria-label": `Confusion matrix of ${number(count)} classes; the most frequent confusions are in the table below it`,
  });
  const place = new Map(classes.map((label, at) => [label, at]));
  const at = new Map();
  const context = canvas.getContext("2d");
  for (const cell of cells) {
    const [row, column] = [place.get(cell.label), place.get(cell.prediction)];
    at.set(row * count + column, cell);
    context.fillStyle = row === column ? `rgba(40, 140, 210, ${0.15 + 0.85 * cell.share})` : `rgba(230, 95, 20, ${0.25 + 0.75 * cell.share})`;
    context.fillRect(column, row, 1, 1);
  }
  const hint = el("p", { class: "hint reading", "aria-hidden": "true" }, "Rows: class. Columns: predicted class. Point at a cell or touch it to read it.");
  const read = (event) => {
    const index = (offset, size) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
    const [row, column] = [index(event.offsetY, canvas.clientHeight), index(event.offsetX, canvas.clientWidth)];
    const images = at.get(row * count + column)?.images ?? 0;
    hint.textContent = `${nameOf(classes[row])} predicted as ${nameOf(classes[column])}: ${counted(images, item)}`;
  };
  canvas.addEventListener("pointermove", read);
  canvas.addEventListener("pointerdown", read);
  const box = scrollBox("Confusion matrix", canvas);
  box.classList.add("matrix");
  const wrong = cells.filter(({ label, prediction }) => label !== prediction);
  const list = grid({
    caption: "Most frequent confusions",
    columns: [
      { key: "class", title: "class", value: ({ label }) => nameOf(label) },
      { key: "predicted", title: "predicted", value: ({ prediction }) => nameOf(prediction) },
      { key: "images", title: `${item}s`, numeric: true, value: ({ images }) => images, cell: ({ images }) => number(images) },
      { key: "share", title: "of the class (%)", numeric: true, value: ({ share }) => 100 * share, cell: ({ share }) => number(100 * share, 1) },
    ],
    rows: wrong,
    sort: { key: "images", down: true },
    page: 15,
    name: "pair",
    wraps: true,
  });
  return el("div", {}, zoom(canvas, count), hint, box, list.element);
}

/** A choice of the size of a class in the picture; a larger picture scrolls in its box. */
function zoom(canvas, count) {
  const sizes = [2, 4, 8, 16].filter((pixels) => pixels * count > BOX / 2);
  const choice = el(
    "select",
    { onchange: () => set(Number(choice.value)) },
    el("option", { value: 0 }, "the whole matrix"),
    ...sizes.map((pixels) => el("option", { value: pixels }, `${pixels} pixels a class`)),
  );
  const set = (pixels) => {
    canvas.style.width = pixels ? `${pixels * count}px` : "100%";
    // A picture that is smaller than its classes shows their mean, so that no class is skipped.
    canvas.classList.toggle("reduced", !pixels && count > BOX);
  };
  // In the whole matrix a class needs some pixels to be seen.
  choice.value = String(BOX / count >= 4 ? 0 : 4);
  set(Number(choice.value));
  return el("p", { class: "choice" }, el("label", {}, "Show ", choice));
}

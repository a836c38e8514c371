// The report's tables: one row per method in blocks of shots, one column per dataset.

// Rows that are drawn before the reader clicks "Show all".
const ROWS = 300;

function tablesView() {
  const section = $("tables");
  const place = el("div");
  const state = { table: data.tables[0], sort: { key: null, down: true }, all: false };

  function draw(focused = null) {
    if (!state.table) {
      place.replaceChildren(el("p", {}, "There is no table: no run has a value."));
      return;
    }
    const { element, count, shown } = drawTable(state, draw);
    const more = shown < count
      ? el("button", { type: "button", onclick: () => { state.all = true; draw(); } }, `Show all ${counted(count, "row")}`)
      : null;
    place.replaceChildren(
      el("p", { class: "status", role: "status" }, count ? counted(count, "row") : "No row passes the filters."),
      scrollBox(state.table.caption, element),
      ...[more].filter(Boolean),
      notes(state.table.notes),
      files(state.table),
    );
    if (focused) focusHeading(element, focused);
  }

  if (data.tables.length > 1) section.append(tableChoice(state, draw));
  section.append(place);
  for (const frame of data.frames) section.append(plainTable(frame));
  if (data.notes.length)
    section.append(el("details", { open: data.notes.length < 20 }, el("summary", {}, `Left out (${number(data.notes.length)})`), notes(data.notes)));
  draw();
  return draw;
}

function tableChoice(state, draw) {
  const options = data.tables.map((table, at) => el("option", { value: at }, table.caption.split(": ")[0]));
  const choice = el("select", { id: "table", onchange: () => {
    Object.assign(state, { table: data.tables[choice.value], all: false });
    draw();
  } }, ...options);
  return el("p", { class: "choice" }, el("label", {}, "Table ", choice));
}

const notes = (lines) => (lines.length ? el("ul", { class: "notes" }, ...lines.map((line) => el("li", {}, line))) : "");

function files(table) {
  return el("p", { class: "files" }, "Files: ", ...["csv", "md", "tex", "html"].flatMap((suffix, at) => [at ? ", " : "", el("code", {}, at ? `.${suffix}` : `tables/${table.measure}.${suffix}`)]));
}

/** The rows of a block that pass the filters, in the reader's order. */
function rowsOf(block, table, sort) {
  if (filter.shots !== "" && block.shots !== Number(filter.shots)) return [];
  const rows = block.rows.filter(
    ([, title, variant, source]) =>
      (!filter.method || title === filter.method) &&
      hasWords(`${title} ${variant} ${source} ${table.backbone}`.toLowerCase()),
  );
  if (!sort.key) return rows;
  const at = table.columns.findIndex((column) => column.key === sort.key);
  const value = at < 0 ? (row) => `${row[1]} ${row[2]}` : (row) => row[4 + at]?.[0] ?? null;
  return [...rows].sort((a, b) => compare(value(a), value(b), sort.down));
}

function drawTable(state, changed) {
  const { table, sort } = state;
  const shownColumns = table.columns
    .map((column, at) => ({ ...column, at, numeric: true }))
    .filter((column) => !filter.dataset || column.key === filter.dataset || !table.datasets.includes(column.key));
  const heads = [{ key: "method", title: "method" }, ...shownColumns].map((column) =>
    sortHeading(column, sort, changed),
  );
  let count = 0;
  let shown = 0;
  const bodies = [];
  for (const block of table.blocks) {
    const rows = rowsOf(block, table, sort);
    const room = state.all ? rows.length : Math.max(0, ROWS - shown);
    const drawn = rows.slice(0, room);
    count += rows.length;
    shown += drawn.length;
    if (!drawn.length) continue;
    const title = el("tr", { class: "block" }, el("th", { scope: "rowgroup", colspan: heads.length }, el("span", {}, block.title)));
    bodies.push(el("tbody", {}, title, ...drawn.map((row) => tableRow(row, shownColumns, block.shots ? table.usual_runs : 1))));
  }
  const element = el("table", { class: "grid results" }, el("caption", {}, table.caption), el("thead", {}, el("tr", {}, ...heads)), ...bodies);
  return { element, count, shown };
}

function tableRow(row, shownColumns, usualRuns) {
  const [, title, variant, source] = row;
  const name = el("th", { scope: "row" }, title, variant ? el("small", {}, ` ${variant}`) : null, source ? el("small", { class: "badge" }, `published: ${source}`) : null);
  return el("tr", { class: source ? "published" : null }, name, ...shownColumns.map((column) => scoreCell(row[4 + column.at], column, usualRuns, source)));
}

function scoreCell(cell, column, usualRuns, source) {
  if (!cell) return el("td", { class: "number missing" }, el("span", { title: "no run" }, MISSING));
  const [mean, std, runs, best, uncertainty] = cell;
  const spread = std ?? uncertainty ?? null;
  const parts = [best ? el("strong", { title: "best of its block" }, number(mean, column.digits)) : number(mean, column.digits)];
  if (spread !== null) parts.push(el("small", {}, ` ± ${number(spread, column.digits)}`));
  if (!source && runs !== usualRuns) parts.push(el("small", { title: counted(runs, "run") }, ` (${runs})`));
  return el("td", { class: "number" }, ...parts);
}

const significant = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(3)));

/** A further table of texts and numbers. */
function plainTable(frame) {
  const all = frame.columns.map((title, at) => {
    const numeric = frame.rows.every((row) => row[at] === null || typeof row[at] === "number");
    return {
      key: String(at),
      title,
      numeric,
      value: (row) => row[at],
      cell: (row) => (typeof row[at] === "number" ? significant(row[at]) : String(row[at] ?? MISSING)),
    };
  });
  const rows = frame.rows;
  return el("details", {}, el("summary", {}, `${frame.title} (${counted(rows.length, "row")})`), el("p", { class: "hint" }, frame.caption), grid({ caption: frame.title, columns: all, rows }).element);
}

// The report's tables: one row per method in blocks of shots, one column per dataset.

// Rows that are drawn before the reader clicks "Show all".
const ROWS = 300;

function tablesView() {
  const section = $("tables");
  const place = el("div");
  const state = { table: data.tables[0], sort: { key: null, down: true }, all: false };
  const choice = tableChoice();

  function draw(focused = null) {
    if (!state.table) {
      place.replaceChildren(el("p", {}, "There is no table: no run has a value."));
      return;
    }
    const wanted = data.tables.find((table) => table.name === address().get("table")) ?? data.tables[0];
    if (wanted !== state.table) Object.assign(state, { table: wanted, all: false });
    choice.value = wanted.name;
    state.sort = sortOf(address().get("sort")) ?? { key: null, down: true };
    const { element, count, shown } = drawTable(state, (key) => {
      remember({ sort: sortText(state.sort) }, { draws: false });
      draw(key);
    });
    const more = shown < count
      ? el("button", { type: "button", onclick: () => {
          state.all = true;
          draw();
        } }, `Show all ${counted(count, "row")}`)
      : null;
    place.replaceChildren(
      el("p", { class: "status", role: "status" }, count ? counted(count, "row") : "No row passes the filters."),
      scrollBox(state.table.caption, element),
      ...[more].filter(Boolean),
      notes(state.table.notes),
      files(state.table.measure),
    );
    if (focused) focusHeading(element, focused);
  }

  if (data.tables.length > 1) section.append(el("p", { class: "choice" }, el("label", {}, "Table ", choice)));
  section.append(place);
  for (const frame of data.frames) section.append(plainTable(frame));
  if (data.notes.length)
    section.append(el("details", { open: data.notes.length < 20 }, el("summary", {}, `Left out (${number(data.notes.length)})`), notes(data.notes)));
  draw();
  return draw;
}

function tableChoice() {
  const options = data.tables.map((table) => el("option", { value: table.name }, table.caption.split(": ")[0]));
  const choice = el("select", { id: "table", onchange: () => remember({ table: choice.value, sort: "" }) }, ...options);
  return choice;
}

const notes = (lines) => (lines.length ? el("ul", { class: "notes" }, ...lines.map((line) => el("li", {}, ...unbroken(line)))) : "");

/** Links to the files of a table. */
function files(name) {
  const link = (suffix, text) => el("a", { href: `tables/${name}.${suffix}` }, text);
  return el("p", { class: "files" }, "Files: ", link("csv", `tables/${name}.csv`), ...["md", "tex", "html"].flatMap((suffix) => [", ", link(suffix, `.${suffix}`)]));
}

/** The rows of a block that pass the filters, in the reader's order. */
function rowsOf(block, table, sort) {
  if (filter.shots !== "" && block.shots !== Number(filter.shots)) return [];
  const rows = block.rows.filter(
    ([, title, variant, source]) =>
      (!filter.method || title === filter.method) &&
      rowPasses(`${title} ${variant} ${source} ${table.backbone} ${block.title}`, () => (source ? [] : runsOf(table.backbone, block.shots, title, variant))),
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
    bodies.push(el("tbody", {}, title, ...drawn.map((row) => tableRow(row, shownColumns, block.shots ? table.usual_runs : null))));
  }
  const element = el("table", { class: "grid results" }, el("caption", {}, table.caption), el("thead", {}, el("tr", {}, ...heads)), ...bodies);
  return { element, count, shown };
}

function tableRow(row, shownColumns, usualRuns) {
  const [, title, variant, source] = row;
  const name = el("th", { scope: "row" }, title, variant ? el("small", {}, " ", ...unbroken(variant)) : null, source ? el("small", { class: "badge" }, `published: ${source}`) : null);
  return el("tr", { class: source ? "published" : null }, name, ...shownColumns.map((column) => scoreCell(row[4 + column.at], column, usualRuns, source)));
}

function scoreCell(cell, column, usualRuns, source) {
  if (!cell) return el("td", { class: "number missing" }, el("span", { title: "no run" }, MISSING));
  const [mean, std, runs, best, uncertainty, interval] = cell;
  const spread = std ?? uncertainty ?? null;
  const parts = [best ? el("strong", { title: "best of its block" }, number(mean, column.digits)) : number(mean, column.digits)];
  if (spread !== null) parts.push(el("small", {}, ` ± ${number(spread, column.digits)}`));
  if (interval) parts.push(el("small", {}, ` [${interval.map((end) => number(end, 1)).join(", ")}]`));
  if (!source && usualRuns !== null && runs !== usualRuns) parts.push(el("small", { title: counted(runs, "run") }, ` (${runs})`));
  return el("td", { class: "number" }, ...parts);
}

/** A further table of texts and numbers. */
function plainTable(frame) {
  const all = frame.columns.map(({ title, digits }, at) => ({
    key: String(at),
    title,
    numeric: digits !== null,
    value: (row) => row[at],
    cell: (row) => (row[at] === null ? MISSING : digits === null ? unbroken(row[at]) : inFormat(row[at], digits)),
  }));
  const rows = frame.rows;
  return el(
    "details",
    {},
    el("summary", {}, `${frame.title} (${counted(rows.length, "row")})`),
    el("p", { class: "hint" }, frame.caption),
    grid({ caption: frame.title, columns: all, rows }).element,
    files(frame.name),
  );
}

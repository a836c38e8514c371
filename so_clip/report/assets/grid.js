// Tables with sortable headings and pages.

const PAGE = 100;

/** A heading that sorts: a button, for use by keyboard, with aria-sort for screen readers. */
function sortHeading(column, state, changed) {
  const sorted = state.key === column.key;
  const arrow = sorted ? (state.down ? "▼" : "▲") : "";
  const button = el(
    "button",
    {
      type: "button",
      onclick: () => {
        // The first click sorts numbers from the largest and texts from A.
        state.down = sorted ? !state.down : Boolean(column.numeric);
        state.key = column.key;
        changed(column.key);
      },
    },
    column.title,
    el("span", { class: "arrow", "aria-hidden": "true" }, arrow),
  );
  button.dataset.key = column.key;
  return el(
    "th",
    {
      scope: "col",
      class: column.numeric ? "number" : null,
      "aria-sort": sorted ? (state.down ? "descending" : "ascending") : null,
    },
    button,
  );
}

/** Focus a heading's button again after its table was redrawn. */
function focusHeading(table, key) {
  for (const button of table.querySelectorAll("th button")) if (button.dataset.key === key) button.focus();
}

/**
 * A table of rows.
 *
 * columns: {key, title, numeric, value(row) to sort by, cell(row) as node or text}; the first
 * column names the row. sort: the initial {key, down}. name: the noun for a row in the count.
 * wraps: whether long values break into lines. sorted(sort): called after a click on a heading.
 */
function grid({ caption, columns: all, rows, sort = {}, page = PAGE, name = "row", wraps = false, sorted = null }) {
  const state = { key: sort.key ?? null, down: sort.down ?? false, first: 0, rows };
  const table = el("table", { class: wraps ? "grid wraps" : "grid" });
  const status = el("p", { class: "status", role: "status" });
  const pager = el("nav", { class: "pager", "aria-label": `Pages: ${caption}` });
  const box = scrollBox(caption, table);

  function sortRows() {
    const column = all.find(({ key }) => key === state.key);
    if (!column) return state.rows;
    // Values are computed once: a sort compares each row many times.
    const valued = state.rows.map((row) => [column.value(row), row]);
    valued.sort((a, b) => compare(a[0], b[0], state.down));
    return valued.map(([, row]) => row);
  }

  function draw() {
    const ordered = (state.ordered ??= sortRows());
    const shown = ordered.slice(state.first, state.first + page);
    const heads = all.map((column) =>
      sortHeading(column, state, (key) => {
        state.first = 0;
        state.ordered = null;
        sorted?.(state);
        draw();
        focusHeading(table, key);
      }),
    );
    const body = shown.map((row) =>
      el(
        "tr",
        {},
        ...all.map((column, at) =>
          el(
            at ? "td" : "th",
            { scope: at ? null : "row", class: column.numeric ? "number" : null },
            ...[column.cell ? column.cell(row) : column.numeric ? String(column.value(row) ?? MISSING) : unbroken(column.value(row) ?? MISSING)].flat(),
          ),
        ),
      ),
    );
    table.replaceChildren(
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...heads)),
      el("tbody", {}, ...body),
    );
    const last = state.first + shown.length;
    const several = ordered.length > page;
    status.textContent = !ordered.length
      ? `No ${name} passes the filters.`
      : several
        ? `${number(state.first + 1)} to ${number(last)} of ${counted(ordered.length, name)}`
        : counted(ordered.length, name);
    drawPager(ordered.length);
  }

  function drawPager(count) {
    pager.hidden = count <= page;
    const lastPage = Math.max(0, Math.ceil(count / page) - 1) * page;
    const steps = [
      ["First", 0, state.first > 0],
      ["Previous", state.first - page, state.first > 0],
      ["Next", state.first + page, state.first + page < count],
      ["Last", lastPage, state.first < lastPage],
    ];
    const focused = pager.contains(document.activeElement) ? document.activeElement.textContent : null;
    pager.replaceChildren(
      ...steps.map(([title, first, possible]) =>
        el(
          "button",
          {
            type: "button",
            // The attribute `disabled` would drop the keyboard focus.
            "aria-disabled": possible ? null : "true",
            onclick: () => {
              if (!possible) return;
              state.first = first;
              draw();
              box.scrollTop = 0;
            },
          },
          title,
        ),
      ),
    );
    for (const button of pager.children) if (button.textContent === focused) button.focus();
  }

  draw();
  return {
    element: el("div", { class: "grid-box" }, status, box, pager),
    setRows(next, sort = state) {
      Object.assign(state, { rows: next, ordered: null, first: 0, key: sort.key, down: sort.down });
      draw();
    },
  };
}

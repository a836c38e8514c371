// All runs as one table with filters and sorting.

const runLink = (run, text) => el("a", { href: `#/run/${encodeURIComponent(data.folder[run])}` }, text);

function runsView() {
  const allRuns = Array.from({ length: data.count }, (_, run) => run);
  const named = (key) => key === "method_title" || key === "variant";
  const name = {
    key: "method_title",
    title: "method",
    value: (run) => `${valueAt(run, "method_title")} ${valueAt(run, "variant") ?? ""}`,
    cell: (run) => [runLink(run, valueAt(run, "method_title")), el("small", {}, " ", ...unbroken(valueAt(run, "variant") ?? ""))],
  };
  const same = data.columns.filter((column) => "all" in column && !named(column.key) && column.key !== "finished_at");
  const others = data.columns
    .filter((column) => !("all" in column) && !named(column.key))
    .map((column) => ({
      key: column.key,
      title: column.title,
      numeric: column.digits !== null,
      value: (run) => valueOf(column, run),
      cell: (run) => cellText(column, valueOf(column, run)),
    }));
  const details = {
    key: "details",
    title: "details",
    numeric: false,
    value: (run) => (detailScripts.has(run) ? "yes" : ""),
    cell: (run) => (detailScripts.has(run) ? "yes" : MISSING),
  };
  const some = detailScripts.size < data.count;
  const only = el("input", { type: "checkbox", onchange: () => remember({ details: only.checked ? "yes" : "" }) });
  const best = { key: "accuracy_percent", down: true };
  const list = grid({
    caption: "All finished runs",
    columns: [name, ...others, ...(some ? [details] : [])],
    rows: allRuns,
    sort: best,
    name: "run",
    sorted: (sort) => remember({ sort: sortText(sort) }, { draws: false }),
  });

  function draw() {
    only.checked = Boolean(address().get("details"));
    list.setRows(allRuns.filter((run) => runPasses(run) && (!only.checked || detailScripts.has(run))), sortOf(address().get("sort")) ?? best);
  }

  $("runs").append(
    some
      ? el(
          "p",
          {},
          `${number(detailScripts.size)} of ${number(data.count)} runs have their confusion matrix, reliability, curves and mistakes on this page. `,
          el("label", {}, only, " Only these"),
        )
      : "",
    same.length
      ? el("p", { class: "same" }, "In all runs: ", same.map((column) => `${column.title} ${cellText(column, column.all)}`).join(", "))
      : "",
    list.element,
  );
  draw();
  return draw;
}

function cellText(column, value) {
  if (value === null) return MISSING;
  if (column.key === "finished_at") return value.slice(0, 16).replace("T", " ");
  return column.digits === null ? value : number(value, column.digits);
}

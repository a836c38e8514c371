// Views, filters and theme.

const views = ["tables", "plots", "runs", "run"];
const filtered = ["tables", "runs"];
const redraw = {};
const controls = new Map([["q", $("words")], ["dataset", $("of-dataset")], ["method", $("of-method")], ["shots", $("of-shots")]]);

/** The view and the run's name in the page's address: #/VIEW?CHOICES or #/run/NAME. */
function route() {
  const [, view = "tables", ...rest] = location.hash.split("?")[0].split("/");
  const name = decoded(rest.join("/"));
  if (view === "run" && !name) return ["runs", ""];
  return views.includes(view) ? [view, name] : ["tables", ""];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a % without a code
  }
}

let last = null;

function show() {
  const [view, name] = route();
  for (const other of views) $(other).hidden = other !== view;
  $("filters").hidden = !filtered.includes(view);
  if (filtered.includes(view)) readFilters();
  if (redraw[view]) redraw[view]();
  else if (view === "tables") redraw.tables = tablesView();
  else if (view === "runs") redraw.runs = runsView();
  const here = `${view}/${name}`;
  const moved = last !== null && last !== here;
  if (view === "run" ? last !== here : true) {
    const title = view === "run" ? showRun(name) : $(`${view}-title`).textContent;
    document.title = `${title} – so_clip report`;
  }
  last = here;
  showLinks();
  if (moved) {
    scrollTo(0, 0);
    // A screen reader then announces the new view.
    (view === "run" ? $("run-title") : $("main")).focus({ preventScroll: true });
  }
}

/** The links to the views keep the filters. */
function showLinks() {
  const [view] = route();
  for (const link of document.querySelectorAll(".top nav a")) {
    const target = link.getAttribute("href").slice(2).split("?")[0];
    if (filtered.includes(target)) link.setAttribute("href", `#/${target}${carried()}`);
    if (target === (view === "run" ? "runs" : view)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Set the filters and their form to the address. */
function readFilters() {
  const choices = address();
  for (const [key, control] of controls) {
    const wanted = choices.get(key) ?? "";
    if (control.value !== wanted) control.value = wanted;
    if (control.value !== wanted) control.value = ""; // the report has no such dataset
  }
  const text = controls.get("q").value;
  filter.words = text.toLowerCase().split(/\s+/).filter(Boolean).map(searchFor);
  for (const key of ["dataset", "method", "shots"]) filter[key] = controls.get(key).value;
}

function filters() {
  const select = (id, key, all, text = String) => {
    const values = key === "method_title" ? methods() : distinct(key);
    $(id).replaceChildren(el("option", { value: "" }, all), ...values.map((value) => el("option", { value }, text(value))));
  };
  select("of-dataset", "dataset", "all");
  select("of-method", "method_title", "all");
  select("of-shots", "shots", "all", shotsName);
  const changed = (event) =>
    remember(Object.fromEntries([...controls].map(([key, control]) => [key, control.value])), { typing: event.target === $("words") });
  $("filters").addEventListener("input", changed);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", (event) => {
    $("filters").reset();
    changed(event);
  });
  addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, select, textarea");
    if (event.key !== "/" || writing || event.ctrlKey || event.metaKey || event.altKey || $("filters").hidden) return;
    event.preventDefault();
    $("words").focus();
  });
}

/** The titles of all methods, including published ones. */
function methods() {
  const titles = new Set(distinct("method_title"));
  for (const table of data.tables) for (const block of table.blocks) for (const row of block.rows) titles.add(row[1]);
  return [...titles].sort((a, b) => compare(a, b));
}

/** Show one of several plots that differ in shots or backbone; the reader chooses. */
function plotChoices() {
  for (const article of document.querySelectorAll("article.plot")) {
    const figures = [...article.querySelectorAll("figure")];
    if (figures.length < 2) continue;
    const choice = el("select", { onchange: () => pick(Number(choice.value)) }, ...figures.map((plot, at) => el("option", { value: at }, plot.dataset.choice)));
    const pick = (chosen) => figures.forEach((plot, at) => plot.classList.toggle("unchosen", at !== chosen));
    article.querySelector("h3").after(el("p", { class: "choice" }, el("label", {}, "Show ", choice)));
    pick(0);
  }
}

function theme() {
  const button = $("theme");
  const key = "so_clip-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const showState = () => button.setAttribute("aria-pressed", String(isDark()));
  try {
    const kept = localStorage.getItem(key);
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch {
    // Some browsers have no storage for local files.
  }
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem(key, next);
    } catch {
      // Without storage the choice lasts until the page closes.
    }
    showState();
  });
  dark.addEventListener("change", showState);
  showState();
}

theme();
filters();
plotChoices();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
addEventListener("hashchange", show);
$("waiting").remove();
show();

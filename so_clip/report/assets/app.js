// Views, filters and theme.

const views = ["tables", "plots", "runs", "run"];
const filtered = ["tables", "runs"];
const redraw = {};

function route() {
  const [, view = "tables", ...rest] = location.hash.split("/");
  const name = decoded(rest.join("/"));
  if (view === "run" && !name) return ["runs", ""];
  return views.includes(view) ? [view, name] : ["tables", ""];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a % that begins nothing
  }
}

function show(moved) {
  const [view, name] = route();
  for (const each of views) $(each).hidden = each !== view;
  $("filters").hidden = !filtered.includes(view);
  if (view === "tables") redraw.tables ??= tablesView();
  if (view === "runs") redraw.runs ??= runsView();
  const title = view === "run" ? showRun(name) : $(`${view}-title`).textContent;
  document.title = `${title} – so_clip report`;
  for (const link of document.querySelectorAll(".top nav a")) {
    const here = link.hash === `#/${view === "run" ? "runs" : view}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (moved) {
    scrollTo(0, 0);
    // So that who reads by ear hears where they are.
    (view === "run" ? $("run-title") : $("main")).focus({ preventScroll: true });
  }
}

function filters() {
  const select = (id, key, all, text = String) => {
    const values = key === "method_title" ? methods() : distinct(key);
    $(id).replaceChildren(el("option", { value: "" }, all), ...values.map((value) => el("option", { value }, text(value))));
  };
  select("of-dataset", "dataset", "all");
  select("of-method", "method_title", "all");
  select("of-shots", "shots", "all", shotsName);
  const changed = () => {
    filter.words = $("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    filter.dataset = $("of-dataset").value;
    filter.method = $("of-method").value;
    filter.shots = $("of-shots").value;
    for (const draw of Object.values(redraw)) draw();
  };
  $("filters").addEventListener("input", changed);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", () => {
    $("filters").reset();
    changed();
  });
  addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, select, textarea");
    if (event.key !== "/" || writing || event.ctrlKey || event.metaKey || event.altKey || $("filters").hidden) return;
    event.preventDefault();
    $("words").focus();
  });
}

/** Titles of methods, of runs and of published rows. */
function methods() {
  const titles = new Set(distinct("method_title"));
  for (const table of data.tables) for (const block of table.blocks) for (const row of block.rows) titles.add(row[1]);
  return [...titles].sort((a, b) => compare(a, b));
}

/** Of plots that differ in their shots or backbone alone, one is shown, and the reader chooses. */
function plotChoices() {
  for (const article of document.querySelectorAll("article.plot")) {
    const figures = [...article.querySelectorAll("figure")];
    if (figures.length < 2) continue;
    const choice = el("select", { onchange: () => pick(Number(choice.value)) }, ...figures.map((each, at) => el("option", { value: at }, each.dataset.choice)));
    const pick = (chosen) => figures.forEach((each, at) => each.classList.toggle("unchosen", at !== chosen));
    article.querySelector("h3").after(el("p", { class: "choice" }, el("label", {}, "Show ", choice)));
    pick(0);
  }
}

function theme() {
  const button = $("theme");
  const key = "so_clip-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  try {
    const kept = localStorage.getItem(key);
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch {
    // Some browsers keep nothing for files.
  }
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem(key, next);
    } catch {
      // As above: then it lasts as long as the page.
    }
    tell();
  });
  dark.addEventListener("change", tell);
  tell();
}

theme();
filters();
plotChoices();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
addEventListener("hashchange", () => show(true));
$("waiting").remove();
show(false);

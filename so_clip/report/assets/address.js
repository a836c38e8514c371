// The reader's choices in the page's address, so that a link and the back button restore them.

/** The choices in the address: q (the search), dataset, method, shots, table, sort, details. */
const address = () => new URLSearchParams(location.hash.split("?")[1] ?? "");

/**
 * Write choices into the address and show them; an empty one is left out.
 *
 * typing: the address replaces the last one, so that "back" does not go through every letter.
 * draws: whether the view is drawn again.
 */
function remember(changes, { typing = false, draws = true } = {}) {
  const choices = address();
  for (const [key, value] of Object.entries(changes)) {
    if (value) choices.set(key, value);
    else choices.delete(key);
  }
  const text = String(choices);
  const next = `${location.hash.split("?")[0] || "#/tables"}${text ? `?${text}` : ""}`;
  if (next !== location.hash) history[typing ? "replaceState" : "pushState"](null, "", next);
  kept = choices;
  if (draws) show();
  else showLinks();
}

/** The last choices of tables and runs; a run's page has none of its own. */
let kept = address();

/** The filters for a link to another view: without the choices that belong to one view. */
function carried() {
  if (filtered.includes(route()[0])) kept = address();
  const choices = new URLSearchParams(kept);
  for (const key of ["table", "sort", "details"]) choices.delete(key);
  return choices.size ? `?${choices}` : "";
}

/** A sorting as text: the column, with a minus if it goes down. */
const sortText = ({ key, down }) => (key === null ? "" : `${down ? "-" : ""}${key}`);

function sortOf(text) {
  if (!text) return null;
  return { key: text.replace(/^-/, ""), down: text.startsWith("-") };
}

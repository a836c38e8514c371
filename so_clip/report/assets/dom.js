// Elements from values. Texts are only ever set as text, never parsed as HTML.

const $ = (id) => document.getElementById(id);

/** An element. Properties that start with "on" are listeners; children are nodes or texts. */
function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** An SVG element. */
function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const MISSING = "–";

/** A number with so many digits after the point; thousands are set apart. */
function number(value, digits = 0) {
  if (value === null || value === undefined) return MISSING;
  return value.toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

// With a space that does not break.
const percent = (value, digits = 2) => (value === null || value === undefined ? MISSING : `${number(value, digits)}\u00a0%`);

/** "1 shot", "4 shots". */
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** Order of two values, of numbers or texts; what is missing comes last whichever way is up. */
function compare(a, b, down) {
  const without = (value) => value === null || value === undefined || value === "";
  if (without(a) || without(b)) return without(a) - without(b);
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  return down ? -order : order;
}

/** A box in which something wide scrolls by itself, by keyboard too. */
function scrollBox(label, ...children) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, ...children);
}

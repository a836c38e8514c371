// Elements from values. A text is never parsed as HTML.

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
// A number with its sign and exponent, not the digits inside a word.
const NUMBER = /((?<![\w.])[-+−±]?\d(?:[\d.,]*\d)?(?:e[-+]?\d+)?)/i;

/** A text as nodes: lines break after the dots and underscores of a name, never inside a number. */
function unbroken(text) {
  return String(text)
    .split(NUMBER)
    .flatMap((piece, at) => {
      if (at % 2) return [el("span", { class: "whole" }, piece)];
      return piece.split(/(?<=[a-z][._/])(?=[a-z])/i).flatMap((part, index) => (index ? [el("wbr"), part] : [part]));
    })
    .filter((node) => node !== "");
}

/** Round as Python's format does (ties to even), so the page shows the digits of the tables' files. */
function round(value, digits) {
  const scaled = value * 10 ** digits;
  const isTie = Number.isInteger(value * 2 ** (digits + 1)) && Math.abs(scaled % 1) === 0.5;
  return isTie ? (2 * Math.round(scaled / 2)) / 10 ** digits : Number(value.toFixed(digits));
}

/** A number with a fixed number of decimals and a separator between thousands. */
function number(value, digits = 0) {
  if (value === null || value === undefined) return MISSING;
  return round(value, digits).toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/** A number in the format of its column: `digits` decimals, or "e" for an exponent. */
function inFormat(value, digits) {
  if (digits !== "e" || value === null) return number(value, digits);
  return value ? value.toExponential(2) : "0";
}

// With a no-break space.
const percent = (value, digits = 2) => (value === null || value === undefined ? MISSING : `${number(value, digits)}\u00a0%`);

/** "1 shot", "4 shots". */
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** The order of two numbers or texts; missing values come last in both directions. */
function compare(a, b, down) {
  const without = (value) => value === null || value === undefined || value === "";
  if (without(a) || without(b)) return without(a) - without(b);
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  return down ? -order : order;
}

/** A box that scrolls wide content, also by keyboard. */
function scrollBox(label, ...children) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, ...children);
}

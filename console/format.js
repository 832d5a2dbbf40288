/**
 * Numbers, times, sizes and names as people read them, and a colour for each node.
 */
import { el, replace } from "./dom.js";

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const CLOCK = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("en", { dateStyle: "medium" });
/** What is not known. */
export const UNKNOWN = "–";
/** Colours that people of every colour vision tell apart; from the ninth node on they come again. */
const COLOURS = 8;

/** @param {number | null | undefined} number */
export function count(number) {
  return number === null || number === undefined ? UNKNOWN : WHOLE.format(number);
}

/** Bytes, in units of a thousand. @param {number | null | undefined} number */
export function bytes(number) {
  if (number === null || number === undefined) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const unit = number < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(number) / 3));
  return `${SHORT.format(number / 1000 ** unit)} ${units[unit]}`;
}

/** Milliseconds. @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  if (ms < 1000) return `${SHORT.format(ms)} ms`;
  if (ms < 60_000) return `${SHORT.format(ms / 1000)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
  if (ms < 86_400_000) return `${Math.floor(ms / 3_600_000)} h ${Math.floor((ms % 3_600_000) / 60_000)} min`;
  return `${SHORT.format(ms / 86_400_000)} days`;
}

/** A moment: the clock alone where it is today. @param {number} ms since 1970 */
export function moment(ms) {
  const when = new Date(ms);
  const today = when.toDateString() === new Date().toDateString();
  return el("time", { datetime: when.toISOString(), title: when.toISOString() }, today ? CLOCK.format(when) : `${DAY.format(when)} ${CLOCK.format(when)}`);
}

/** @param {number} number @param {string} one @param {string} [many] */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** `a`, `a and b`, `a, b and c`. @param {string[]} names */
export function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** The class of a node's colour, by its number. @param {string} node such as `n1` */
export function colour(node) {
  return `n${(Number(node.slice(1)) + COLOURS - 1) % COLOURS}`;
}

/** A node's name beside its colour. @param {string} node */
export function chip(node) {
  return el("span", { class: "chip" }, el("i", { class: colour(node), "aria-hidden": "true" }), node);
}

/** Names beside their colours. @param {string[]} nodes */
export function chips(nodes) {
  return el("span", { class: "chips" }, ...nodes.map(chip));
}

/** Says a state in an element, and touches the page only where it changes. */
export function say(node, kind, word) {
  if (node.dataset.said !== word) replace(node, state(kind, word));
  node.dataset.said = word;
}

/** A word of state; its sign says the same without colour. @param {"ok" | "warn" | "bad" | "quiet"} kind @param {string} word */
export function state(kind, word) {
  const sign = { ok: "●", warn: "▲", bad: "✕", quiet: "○" }[kind];
  return el("span", { class: `state ${kind}` }, el("b", { "aria-hidden": "true" }, sign), ` ${word}`);
}

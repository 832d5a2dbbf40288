/**
 * The map of how the copies agree: a line for each pair of nodes, a field for each of the 16 chunks of the keyspace.
 */
import * as api from "./api.js";
import { button, el, empty, panel, replace, table } from "./dom.js";
import { chip, count, counted, moment, state } from "./format.js";

const CHUNKS = 16;
/** The map is asked for anew this often while it is looked at, in milliseconds. */
const EVERY_MS = 10_000;
/** Keys that are named on the page. */
const KEYS_MAX = 200;

const SIGNS = { equal: "=", differs: "≠", unknown: "?" };

const parts = {};
let asked = 0, busy = false;

export function create() {
  parts.map = el("div", {}, el("p", { class: "quiet" }, "Asking every pair of nodes …"));
  parts.keys = el("div", {});
  parts.said = el("span", { role: "status" });
  parts.compare = button("Compare now", () => compare(false));
  parts.name = button("Name the keys that differ", () => compare(true));
  return panel("Do the copies agree?", [
    el("p", { class: "quiet" }, "Each pair of nodes that keeps the same keys is asked anew. Writes under way show as ≠ for a moment."),
    parts.map, (parts.scrubs = el("p", { class: "quiet" })),
    el("p", { class: "legend" }, ...Object.entries(SIGNS).flatMap(([status, sign]) => [el("span", { class: `cell ${status}` }, sign), ` ${status} `]), el("span", { class: "cell" }), " not shared"),
    el("div", { class: "row" }, parts.compare, parts.name), parts.keys], parts.said);
}

/** Asks again where that was long ago. */
export function refresh() {
  if (Date.now() - asked >= EVERY_MS) compare(false);
}

/** Asks; with `keys` the keys that differ are named. @param {boolean} keys */
async function compare(keys) {
  if (busy) return;
  busy = true;
  asked = Date.now();
  if (keys) replace(parts.keys, el("p", { class: "quiet" }, "Comparing key by key …"));
  const answer = await api.convergence(keys);
  busy = false;
  asked = Date.now();
  if (!answer.ok) {
    replace(parts.said, state("bad", "not known"));
    return replace(parts.map, empty(answer.problem.title, answer.problem.detail));
  }
  draw(answer.body);
  if (keys) named(answer.body.pairs);
}

function draw({ status, pairs, scrubs }) {
  replace(parts.said, verdict(status));
  replace(parts.scrubs, "All rows on disk were last verified: ", ...scrubs.flatMap(({ node, ended_ms: ended }) => [chip(node), " ", ended ? moment(ended) : "not since it started", "  "]));
  if (!pairs.length) return replace(parts.map, empty("There are no copies to compare", "Either there is one node, or each key is kept once: start more nodes, or found a cluster with REPLICATION_FACTOR 2 or more."));
  const { whole, body } = table("Agreement by pair and chunk", ["Pair", ...Array.from({ length: CHUNKS }, (_, chunk) => chunk.toString(16)), "In short"]);
  whole.classList.add("map");
  body.append(...pairs.map(line));
  replace(parts.map, whole);
}

function verdict(status) {
  return { equal: () => state("ok", "all copies are equal"), differs: () => state("warn", "some copies differ"), unknown: () => state("quiet", "not all is known") }[status]();
}

function line(pair) {
  const of = new Map(pair.chunks.map(chunk => [chunk.chunk, chunk]));
  const cells = Array.from({ length: CHUNKS }, (_, chunk) => cell(chunk, pair.reason ? { status: "unknown" } : of.get(chunk)));
  return el("tr", {}, el("th", { scope: "row" }, chip(pair.nodes[0]), " ", chip(pair.nodes[1])), ...cells, el("td", { class: "short" }, ...inShort(pair)));
}

function cell(chunk, told) {
  if (!told) return el("td", {}, el("span", { class: "cell", title: `chunk ${chunk.toString(16)}: not shared` }, el("span", { class: "hidden" }, "not shared")));
  const since = told.since_ms ? ` since ${new Date(told.since_ms).toLocaleTimeString("en", { hourCycle: "h23" })}` : "";
  return el("td", {}, el("span", { class: `cell ${told.status}`, title: `chunk ${chunk.toString(16)}: ${told.status}${since}` }, SIGNS[told.status], el("span", { class: "hidden" }, ` ${told.status}`)));
}

/** The line in words. */
function inShort(pair) {
  if (pair.reason) return [state("quiet", "not known"), el("small", {}, ` ${pair.reason}`)];
  const differ = pair.chunks.filter(chunk => chunk.status === "differs").length;
  if (differ) return [state("warn", `${counted(differ, "chunk")} ${differ === 1 ? "differs" : "differ"}`)];
  if (pair.status !== "equal") return [state("quiet", "not all is known")];
  const known = pair.chunks.map(chunk => chunk.equal_up_to_ms).filter(Boolean);
  return known.length ? [state("ok", "equal"), el("small", {}, " in all written up to "), el("small", {}, moment(Math.min(...known)))] : [state("ok", "equal")];
}

function named(pairs) {
  const differing = pairs.filter(pair => pair.keys?.length);
  if (!differing.length) return replace(parts.keys, el("p", {}, state("ok", "no key differs"), " but for what was written in the last five seconds."));
  const link = ({ key }) => el("li", {}, el("a", { class: "mono", href: `#keys/${encodeURIComponent(key)}` }, key));
  replace(parts.keys, ...differing.flatMap(pair => [
    el("h3", {}, chip(pair.nodes[0]), " and ", chip(pair.nodes[1]), `: ${count(pair.differing)} differ`),
    el("ul", { class: "recent" }, ...pair.keys.slice(0, KEYS_MAX).map(link))]));
}

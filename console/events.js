/**
 * The view "Events": what happened to the cluster, as this node saw it, the newest first and live.
 */
import { el, empty, panel, replace, text } from "./dom.js";
import { chip, counted, moment } from "./format.js";

/** Events that the page keeps. */
const EVENTS_MAX = 1000;
const KINDS = ["membership", "topology", "repair", "hints", "damage"];

/** @typedef {import("./types").Happening} Happening */

const parts = {};
const hidden = new Set();
let kept = 0;

export function build(root) {
  parts.list = el("ol", { class: "log", role: "log", "aria-live": "polite", "aria-label": "Events, the newest first" });
  parts.none = el("div", {}, empty("Nothing has happened yet", "When a node comes or goes, or copies are repaired, it is told here the moment this node learns of it."));
  parts.count = el("span", { class: "quiet" });
  const filters = el("div", { class: "filters", role: "group", "aria-label": "Kinds of events" }, ...KINDS.map(filter));
  root.append(panel("Events", [filters, parts.none, parts.list], parts.count));
}

function filter(kind) {
  const box = el("input", { type: "checkbox", checked: true, onchange: () => {
    if (box.checked) hidden.delete(kind);
    else hidden.add(kind);
    parts.list.querySelectorAll("li").forEach(line => (line.hidden = hidden.has(line.dataset.kind)));
    counts();
  } });
  return el("label", { class: "filter" }, box, kind);
}

/** @param {Happening} event */
export function add(event) {
  const line = el("li", { "data-kind": event.kind }, moment(event.at_ms), el("span", { class: `kind ${event.kind}` }, event.kind), chip(event.node), el("span", { class: "what" }, event.text));
  line.hidden = hidden.has(event.kind);
  parts.list.prepend(line);
  kept += 1;
  if (kept > EVENTS_MAX) {
    parts.list.lastElementChild.remove();
    kept -= 1;
  }
  counts();
}

function counts() {
  const shown = parts.list.querySelectorAll("li:not([hidden])").length;
  parts.none.hidden = shown > 0;
  if (kept && !shown) replace(parts.none, empty("No event of these kinds", "Tick another kind above."));
  text(parts.count, shown === kept ? counted(kept, "event") : `${shown} of ${counted(kept, "event")}`);
}

/** The events come by themselves. */
export function update() {}

/**
 * The view "Healing": how the copies agree, repairs and how far they are, and the hints that wait.
 */
import * as api from "./api.js";
import { attribute, el, empty, follow, panel, replace, table, text } from "./dom.js";
import { UNKNOWN, bytes, chip, count, counted, duration, moment, state } from "./format.js";
import * as convergence from "./convergence.js";

/** @typedef {import("./api.js").Snapshot} Snapshot @typedef {import("./api.js").Operation} Operation */

const parts = {};

export function build(root) {
  root.append(convergence.create(), el("div", { class: "halves" }, repairs(), hints()));
}

export function show() {
  convergence.refresh();
}

/** @param {Snapshot} snapshot */
export function update(snapshot) {
  convergence.refresh();
  parts.noRepair.hidden = snapshot.operations.length > 0;
  follow(parts.operations, snapshot.operations, operation => operation.id, line, progress);
  owed(snapshot);
}

// ---------------------------------------------------------------------------------------------------------- repairs

function repairs() {
  parts.operations = el("ul", { class: "operations" });
  parts.noRepair = empty("No repair since this node started", "Copies are compared and made equal by themselves now and then. A repair does it at once.");
  parts.begun = el("p", { role: "status" });
  const begin = dryRun => async () => {
    const answer = await api.repair(dryRun);
    text(parts.begun, answer.ok ? "" : `${answer.problem.title}: ${answer.problem.detail}`);
  };
  return panel("Repairs", [
    el("div", { class: "row" }, el("button", { type: "button", class: "primary", onclick: begin(false) }, "Repair now"), el("button", { type: "button", onclick: begin(true) }, "Count what differs")),
    parts.begun, parts.noRepair, parts.operations]);
}

/** @param {Operation} operation */
function line(operation) {
  const what = operation.dry_run ? "Count what differs" : "Repair";
  return el("li", {},
    el("div", { class: "head" }, el("strong", {}, what), el("small", {}, "begun ", moment(operation.started_ms)), el("span", { class: "is" })),
    el("progress", { max: 1, "aria-label": `${what}: progress` }),
    el("p", { class: "quiet" }),
    el("button", { type: "button", onclick: event => {
      event.target.disabled = true;
      api.abort(operation.id);
    } }, "Abort"));
}

/** @param {Element} node @param {Operation} operation */
function progress(node, operation) {
  const is = node.querySelector(".is");
  const kind = { running: "quiet", done: "ok", failed: "bad", aborted: "warn" }[operation.state];
  if (is.dataset.said !== operation.state) replace(is, state(kind, operation.state));
  is.dataset.said = operation.state;
  const runs = operation.state === "running";
  const bar = node.querySelector("progress");
  bar.hidden = !runs;
  attribute(bar, "value", operation.total ? operation.done / operation.total : null);
  node.querySelector("button").hidden = !runs;
  text(node.querySelector("p"), account(operation, runs));
}

/** What it did, in words. @param {Operation} operation */
function account(operation, runs) {
  const said = [`${counted(operation.differing, "record")} differed`];
  if (!operation.dry_run) said.push(`${count(operation.sent)} given, ${count(operation.received)} taken`);
  said.push(`${bytes(operation.bytes)} moved`);
  if (runs && operation.total) said.push(`${count(operation.done)} of ${counted(operation.total, "leaf", "leaves")}`);
  if (runs && operation.eta_ms !== null) said.push(`${duration(operation.eta_ms)} left`);
  if (operation.ended_ms) said.push(`took ${duration(operation.ended_ms - operation.started_ms)}`);
  if (operation.reason) said.push(operation.reason);
  return said.join(" · ");
}

// ------------------------------------------------------------------------------------------------------------ hints

function hints() {
  const { whole, body } = table("Hints", ["Kept by", "For", "#Hints", "#Bytes", "Oldest", "#Dropped"]);
  Object.assign(parts, { hints: body, hintTable: whole });
  parts.noHints = empty("No hint waits", "A node keeps a hint when a write's home replica cannot be reached, and hands it over when that node is back.");
  return panel("Hints", [parts.noHints, whole]);
}

/** All nodes' hints; how old they are each node tells of its own alone. @param {Snapshot} snapshot */
function owed(snapshot) {
  const own = snapshot.hints.targets.map(target => ({ ...target, by: snapshot.node }));
  const others = (snapshot.cluster?.members ?? []).filter(member => member.id !== snapshot.node);
  const told = others.flatMap(member => (member.hints_kept ?? []).map(kept => ({ ...kept, by: member.id })));
  const rows = [...own, ...told].filter(row => row.count > 0 || row.dropped > 0);
  parts.noHints.hidden = rows.length > 0;
  parts.hintTable.hidden = rows.length === 0;
  follow(parts.hints, rows, row => `${row.by} ${row.node}`, row => el("tr", {}, el("td", {}, chip(row.by)), el("td", {}, chip(row.node)),
    el("td", { class: "number" }), el("td", { class: "number" }), el("td", {}), el("td", { class: "number" })), (node, row) => {
    const oldest = row.oldest_ms ? `${duration(Math.floor(Math.max(1000, snapshot.at_ms - row.oldest_ms) / 1000) * 1000)} ago` : UNKNOWN;
    [count(row.count), bytes(row.bytes), oldest, count(row.dropped)].forEach((value, at) => text(node.children[at + 2], value));
  });
}

/**
 * The view "Healing": how the copies agree, repairs and how far they are, hints and tombstones and whom they wait for.
 */
import * as api from "./api.js";
import { attribute, button, el, empty, follow, panel, replace, table, text } from "./dom.js";
import { UNKNOWN, bytes, chip, count, counted, duration, moment, say, state } from "./format.js";
import * as convergence from "./convergence.js";

/** Tombstones are asked for anew this often while they are looked at, in milliseconds. */
const TOMBSTONES_EVERY_MS = 10_000;

/** @typedef {import("./types").Snapshot} Snapshot @typedef {import("./types").Operation} Operation */

const parts = {};

export function build(root) {
  root.append(convergence.create(), el("div", { class: "halves" }, repairs(), el("div", {}, hints(), tombstones())));
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
  remembered(snapshot);
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
    el("div", { class: "row" }, button("Repair now", begin(false), { class: "primary" }), button("Count what differs", begin(true))),
    parts.begun, parts.noRepair, parts.operations]);
}

/** @param {Operation} operation */
function line(operation) {
  const what = operation.dry_run ? "Count what differs" : "Repair";
  return el("li", {},
    el("div", { class: "head" }, el("strong", {}, what), el("small", {}, "begun ", moment(operation.started_ms)), el("span", { class: "is" })),
    el("progress", { max: 1, "aria-label": `${what}: progress` }),
    el("p", { class: "quiet" }),
    button("Abort", event => {
      event.target.disabled = true;
      api.abort(operation.id);
    }));
}

/** @param {Element} node @param {Operation} operation */
function progress(node, operation) {
  const kind = { running: "quiet", done: "ok", failed: "bad", aborted: "warn" }[operation.state];
  say(node.querySelector(".is"), kind, operation.state);
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
    const oldest = ago(row.oldest_ms, snapshot);
    [count(row.count), bytes(row.bytes), oldest, count(row.dropped)].forEach((value, at) => text(node.children[at + 2], value));
  });
}

/** How long ago that was, in whole seconds. */
function ago(ms, snapshot) {
  return ms ? `${duration(Math.floor(Math.max(1000, snapshot.at_ms - ms) / 1000) * 1000)} ago` : UNKNOWN;
}

// ------------------------------------------------------------------------------------------------------- tombstones

function tombstones() {
  const { whole, body } = table("Tombstones", ["Node", "#Tombstones", "Oldest", "#Purged"]);
  parts.graves = body;
  parts.waiting = el("p", {});
  parts.tombstones = panel("Tombstones", [parts.waiting, whole]);
  parts.tombstones.hidden = true;
  return parts.tombstones;
}

/** Deleted keys that are still remembered, where the node tells of them. @param {Snapshot} snapshot */
async function remembered(snapshot) {
  if (Date.now() - (parts.asked ?? 0) < TOMBSTONES_EVERY_MS) return;
  parts.asked = Date.now();
  parts.told ??= "tombstones" in ((await api.index()).body?.links ?? {});
  const answer = parts.told && (await api.tombstones());
  parts.tombstones.hidden = !answer?.ok;
  if (!answer?.ok) return;
  /** @type {import("./types").Tombstones} */
  const { waiting_for: waiting, members } = answer.body;
  const why = waiting.flatMap(({ node, reason }) => [" ", chip(node), ` (${reason})`]);
  replace(parts.waiting, ...(why.length ? [state("warn", "waiting for"), ...why] : [state("ok", "nothing is in the way"), " Each is forgotten when it is old enough."]));
  const cells = member => [chip(member.node), count(member.tombstones), ago(member.oldest_ms, snapshot), count(member.purged)];
  replace(parts.graves, ...members.map(member => el("tr", {}, ...cells(member).map((cell, at) => el("td", { class: at % 2 && "number" }, cell)))));
}

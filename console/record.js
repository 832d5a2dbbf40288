/**
 * What a request about a key came to: a record with its copies, a receipt, or a problem.
 */
import { button, el, row, table } from "./dom.js";
import { bytes, chip, chips, counted, listed, moment, state } from "./format.js";
import { bytesOf, viewer } from "./value.js";

/** @typedef {import("./types").Problem} Problem */

/** Names and what belongs to them; without a value a line is left out. */
function facts(pairs) {
  const given = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false);
  return el("dl", { class: "facts" }, ...given.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** @param {object} record as `?view=record` tells it @param {(record: object) => void} edit */
export function found(record, edit) {
  const weak = !record.strict && el("p", { class: "hint" }, "A stand-in was counted for a home replica that cannot be reached: the answer may miss strict writes.");
  return el("div", { class: "result" },
    el("h3", {}, state("ok", "found"), el("code", {}, record.key)),
    weak,
    facts([
      ["Version", el("code", {}, record.version)],
      ["Written", moment(record.written_ms)],
      ["Expires", record.expires_at_ms && moment(record.expires_at_ms)],
      ["Type", record.content_type],
      ["Size", bytes(record.bytes)],
    ]),
    viewer(record),
    el("div", { class: "row" },
      record.value !== undefined && button("Edit", () => edit(record)),
      button("Download", () => download(record))),
    el("h4", {}, "Copies"),
    copies(record));
}

/** What each replica holds, beside the version that was told. */
function copies(record) {
  const { whole, body } = table("Copies of the key", ["Node", "Holds", "Version"]);
  const homes = new Set(record.replicas);
  const silent = record.replicas.filter(node => !record.copies.some(copy => copy.node === node));
  for (const copy of record.copies) {
    body.append(row([chip(copy.node), !homes.has(copy.node) && el("small", {}, " stand-in")], held(copy, record.version), el("code", {}, copy.version ?? "–")));
  }
  for (const node of silent) body.append(row(chip(node), state("bad", "no answer"), "–"));
  return whole;
}

function held(copy, newest) {
  if (copy.version === null) return state("warn", "nothing yet");
  if (copy.version === newest) return state("ok", "this version");
  return state("warn", copy.live ? "another version" : "a tombstone");
}

/** Saves the bytes as they were stored. */
function download(record) {
  const url = URL.createObjectURL(new Blob([bytesOf(record)], { type: "application/octet-stream" }));
  const link = el("a", { href: url, download: record.key.replace(/[^\w.-]+/g, "_") || "value" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** What a write really did. @param {object} receipt */
export function receipt(receipt) {
  const hinted = Object.entries(receipt.hinted);
  return el("div", { class: "result" },
    el("h3", {}, state(receipt.strict ? "ok" : "warn", receipt.message), el("code", {}, receipt.key)),
    hinted.length > 0 && el("p", { class: "hint" }, `${listed(hinted.map(([home, keeper]) => `${keeper} keeps it for ${home}`))}, and hands it over when ${hinted.length === 1 ? "that node is" : "those nodes are"} back.`),
    !receipt.strict && el("p", { class: "hint" }, "Fewer than a majority of the home replicas have it yet, so conditions and linearizable reads may not see it."),
    facts([
      ["Version", el("code", {}, receipt.version)],
      ["On disk at", receipt.acked.length ? chips(receipt.acked) : "no home replica yet"],
      ["Home replicas", chips(receipt.replicas)],
      ["Consistency", receipt.consistency],
      ["Expires", receipt.expires_at_ms && moment(receipt.expires_at_ms)],
    ]));
}

/** What went wrong, what is known of a write, and what to do. @param {Problem} problem @param {string} [key] */
export function refused(problem, key) {
  const outcome = {
    applied: "The write was applied.",
    not_applied: "Nothing was written.",
    unknown: "It is not known whether the write was applied: read the key to see.",
  }[problem.outcome];
  const soft = [404, 412].includes(problem.status);
  return el("div", { class: "result" },
    el("h3", {}, state(soft ? "warn" : "bad", problem.code.replaceAll("-", " ")), key && el("code", {}, key)),
    el("p", {}, el("strong", {}, `${problem.title}.`), ` ${sentence(problem.detail)}`),
    outcome && el("p", {}, outcome),
    problem.retryable && el("p", {}, "The same request may succeed later."),
    facts([
      ...(problem.parameters ?? []).map(({ name, reason }) => [name, reason]),
      ["Failed", problem.failed?.length ? listed(problem.failed.map(({ node, reason }) => `${node}: ${reason}`)) : null],
      ["Status", problem.status || null],
      ["Request", problem.request_id && el("code", {}, problem.request_id)],
    ]));
}

function sentence(words = "") {
  return words && `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

/** Where the key lives, for a key that has no value. @param {{ slot: string, home_replicas: string[] }} placement */
export function place(placement) {
  return facts([["Slot", placement.slot], ["Home replicas", chips(placement.home_replicas)], ["Copies", counted(placement.home_replicas.length, "node")]]);
}

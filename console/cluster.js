/**
 * The view "Cluster": whether it is well, the ring, and a card for each node.
 */
import * as api from "./api.js";
import { attribute, el, empty, field, follow, panel, replace, svg, text } from "./dom.js";
import { UNKNOWN, bytes, chip, chips, colour, count, counted, duration, listed, say } from "./format.js";
import * as ring from "./ring.js";

/** Seconds that the small curve of a card reaches back. */
const CURVE_SECONDS = 60;
/** So many cards stand below each other; more stand side by side. */
const FEW = 4;

/** @typedef {import("./types").Member} Member @typedef {import("./types").Snapshot} Snapshot */

const parts = {};
/** The operations each second of each node, the newest last. @type {Map<string, number[]>} */
const rates = new Map();
/** The epoch whose ring is drawn. */
let drawn = null;

export function build(root) {
  parts.figures = el("dl", { class: "figures" });
  parts.word = el("p", { class: "word" });
  parts.said = el("p", { class: "said" });
  parts.ring = ring.create(slot => replace(parts.slot, ...told(slot)));
  parts.slot = el("p", { class: "legend", "aria-live": "polite" });
  parts.notes = el("div", { class: "result", role: "status" });
  parts.cards = el("div", { class: "cards" });
  parts.none = el("div", {});
  root.append(
    el("section", { class: "panel hero", "aria-label": "Health" }, el("div", {}, parts.word, parts.said), parts.figures),
    parts.none,
    el("div", { class: "split" },
      panel("Ring", [parts.ring.picture, parts.slot, parts.notes, finder()]),
      el("section", { "aria-label": "Nodes" }, parts.cards)),
  );
  rest();
}

/** What stands under the ring while no slot is picked. */
function rest() {
  replace(parts.slot, "Each band is a copy; the outer one is asked first. Point at a slot, or use the arrow keys.");
}

function told(slot) {
  return [`Slot ${slot.slot}: `, chips(slot.replicas), ...(slot.before ? [" before: ", chips(slot.before)] : [])];
}

/** Where a key lives. */
function finder() {
  const key = el("input", { name: "key", class: "mono", autocomplete: "off", spellcheck: "false" });
  return el("form", { class: "row", onsubmit: async event => {
    event.preventDefault();
    if (!key.value) return key.focus();
    const answer = await api.placement(key.value);
    if (!answer.ok) return replace(parts.slot, answer.problem.detail);
    const { slot, home_replicas: homes, fallbacks } = answer.body;
    parts.ring.pick(parseInt(slot, 16));
    const others = fallbacks.length ? [" Stand-ins: ", chips(fallbacks)] : [];
    replace(parts.slot, `In slot ${slot}: `, chips(homes), ...others);
  } }, field("Where does a key live?", key), el("button", {}, "Find"));
}

/** @param {Snapshot} snapshot */
export function update(snapshot) {
  const { cluster, health } = snapshot;
  if (!cluster || !health) {
    replace(parts.none, empty("There is no cluster yet", "The node looks for its seeds and for the members it is to found a cluster with. What it waits for is said above."));
    return;
  }
  parts.none.replaceChildren();
  hero(cluster, health);
  remember(cluster.members);
  const gone = new Set(cluster.members.filter(member => !member.reachable).map(member => member.id));
  parts.cards.classList.toggle("few", cluster.members.length <= FEW);
  const copies = cluster.members.reduce((all, member) => all + member.slots, 0);
  follow(parts.cards, cluster.members, member => member.id, card, (node, member) => refresh(node, member, snapshot, copies));
  if (drawn !== cluster.epoch) redraw(cluster.epoch, gone);
  parts.ring.gone(gone);
  parts.ring.rest(counted(cluster.members.length, "node"), `${counted(cluster.rf, "copy", "copies")} of each key`);
}

async function redraw(epoch, gone) {
  drawn = epoch;
  const answer = await api.ring();
  if (!answer.ok) return void (drawn = null);
  /** @type {import("./types").Ring} */
  const { slots, warnings, moving } = answer.body;
  parts.ring.draw(slots);
  if (moving) warnings.unshift(`${moving.text}, since epoch ${moving.since}: ${counted(moving.slots, "slot")} move`);
  replace(parts.notes, ...warnings.map(note => el("p", { class: "hint" }, note)));
  parts.ring.gone(gone);
}

function hero(cluster, health) {
  const short = health.slots_total - health.slots_full;
  const kind = { healthy: "ok", degraded: "warn", unavailable: "bad" }[health.status];
  const said = {
    healthy: "Every copy of every key is within reach.",
    degraded: `Everything can be read and written. ${counted(short, "slot")} of ${health.slots_total} ${short === 1 ? "misses" : "miss"} a copy while ${names(health)} cannot be reached.`,
    unavailable: `${counted(health.slots_unavailable, "slot")} of ${health.slots_total} cannot be served at quorum while ${names(health)} cannot be reached. Bring back a node; reads and writes at one may still work.`,
  }[health.status];
  say(parts.word, kind, capital(health.status));
  text(parts.said, said);
  const sum = of => cluster.members.reduce((all, member) => all + (member.reachable ? member[of] ?? 0 : 0), 0);
  figures(parts.figures, [
    ["Nodes up", `${count(cluster.members.length - health.members_down.length)} of ${count(cluster.members.length)}`],
    ["Operations/s", count(sum("requests_per_second"))],
    ["Copies kept", count(sum("keys"))],
    ["Hints waiting", count(health.hints_pending)],
    ["Epoch", count(cluster.epoch)],
  ]);
}

function capital(word) {
  return word[0].toUpperCase() + word.slice(1);
}

function names(health) {
  return health.members_down.length ? listed(health.members_down) : "a node";
}

/** A list of names and figures. @param {Element} list @param {[string, string][]} pairs */
function figures(list, pairs) {
  follow(list, pairs, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd", {})), (node, [, value]) => text(node.lastChild, value));
}

/** @param {Member[]} members */
function remember(members) {
  for (const member of members) {
    const known = rates.get(member.id) ?? [];
    known.push(member.reachable ? member.requests_per_second ?? 0 : 0);
    rates.set(member.id, known.slice(-CURVE_SECONDS));
  }
}

/** @param {Member} member */
function card(member) {
  const light = on => parts.ring.light(on ? member.id : undefined);
  return el("article", { class: `card ${colour(member.id)}`, "aria-label": `Node ${member.id}`, onpointerenter: () => light(true), onpointerleave: () => light(false) },
    el("header", {}, el("h3", {}, chip(member.id)), el("span", { class: "tag" }), el("span", { class: "is" })),
    svg("svg", { class: "curve", viewBox: `0 0 ${CURVE_SECONDS - 1} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }, svg("title", {}, "Operations each second, in the last minute"), svg("polyline", {})),
    el("dl", { class: "figures" }),
    el("footer", {}, el("span", { class: "facts" }), el("a", {})));
}

/** @param {Element} node @param {Member} member @param {Snapshot} snapshot @param {number} copies of all */
function refresh(node, member, snapshot, copies) {
  const [kind, word] = condition(member);
  say(node.querySelector(".is"), kind, word);
  node.dataset.state = word;
  node.classList.toggle("away", !member.reachable);
  text(node.querySelector(".tag"), member.id === snapshot.node ? "this node" : "");
  const now = value => (member.reachable ? value : UNKNOWN);
  figures(node.querySelector("dl"), [
    ["Ops/s", now(count(member.requests_per_second))],
    ["p99", now(duration(member.latency_p99_ms))],
    ["Keys", count(member.keys)],
    ["Bytes", bytes(member.bytes)],
    ["Slots", `${count(member.slots)} (${count((100 * member.slots) / copies)}%)`],
    ["Hints owed", count(member.hints_owed)],
  ]);
  node.querySelector("dl").lastChild.classList.toggle("owed", member.hints_owed > 0);
  const facts = [member.zone ? `zone ${member.zone}` : "no zone", member.program ? `version ${member.program}` : "version not told"];
  if (member.epoch !== null && member.epoch !== snapshot.cluster.epoch) facts.push(`still at epoch ${member.epoch}`);
  text(node.querySelector(".facts"), facts.join(" · "));
  const link = node.querySelector("a");
  text(link, member.http_address);
  attribute(link, "href", `//${member.http_address}/`);
  attribute(link, "title", `The console of ${member.id}`);
  curve(node.querySelector("polyline"), rates.get(member.id));
}

/** What a node is, in a word. @param {Member} member @returns {["ok" | "warn" | "bad" | "quiet", string]} */
function condition(member) {
  if (member.liveness === "down") return member.state === "draining" ? ["bad", "stopped"] : ["bad", "down"];
  if (!member.reachable) return ["bad", "unreachable"];
  if (member.liveness === "suspect") return ["warn", "suspect"];
  return { serving: ["ok", "serving"], draining: ["warn", "draining"], failed: ["bad", "failed"], starting: ["quiet", "starting"] }[member.state] ?? ["quiet", "not told"];
}

/** The operations of the last minute, the highest of them at the top. */
function curve(line, values) {
  const most = Math.max(...values, 1);
  const from = CURVE_SECONDS - values.length;
  attribute(line, "points", values.map((value, at) => `${from + at},${(19 - (value / most) * 18).toFixed(1)}`).join(" "));
}

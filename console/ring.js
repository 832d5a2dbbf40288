/**
 * The ring as a picture: 256 slots around a circle, a band for each copy, each piece in the colour of its home replica.
 * The arrow keys go from slot to slot; what is chosen is said in the middle, in words.
 */
import { attribute, replace, svg, text } from "./dom.js";
import { colour, listed } from "./format.js";

const SIZE = 400, MIDDLE = SIZE / 2;
/** The bands lie between these radii, the first home replicas outside. */
const OUTER = 178, INNER = 98, GAP = 3;
const SLOTS = 256, CHUNKS = 16;

/** @typedef {import("./types").Slot} Slot */

/** A picture of the ring. `chosen` hears of the slot that a person picks. @param {(slot: Slot) => void} chosen */
export function create(chosen) {
  const bands = svg("g", {}), mark = svg("path", { class: "mark" });
  const title = svg("text", { class: "big", x: MIDDLE, y: MIDDLE - 4 }), line = svg("text", { x: MIDDLE, y: MIDDLE + 20 });
  const picture = svg("svg", { class: "ring", viewBox: `0 0 ${SIZE} ${SIZE}`, tabindex: 0, role: "slider", "aria-label": "Slots of the ring",
    "aria-valuemin": 0, "aria-valuemax": SLOTS - 1, "aria-valuenow": 0 }, bands, ...scale(), mark, title, line);
  const ring = { picture, slots: [], at: -1, idle: ["", ""] };

  const say = (first, second) => {
    text(title, first);
    text(line, second);
  };
  /** Marks a slot, by its number; -1: none. */
  ring.pick = at => {
    ring.at = ring.slots.length ? at : -1;
    const slot = ring.slots[ring.at];
    attribute(mark, "d", slot ? sector(at, at + 1, INNER - 6, OUTER + 5) : "");
    attribute(picture, "aria-valuenow", Math.max(at, 0));
    attribute(picture, "aria-valuetext", slot ? `slot ${slot.slot}: ${listed(slot.replicas)}` : "no slot chosen");
    if (!slot) return say(...ring.idle);
    say(`slot ${slot.slot}`, short(slot.replicas));
    chosen(slot);
  };
  /** Draws the slots. @param {Slot[]} slots */
  ring.draw = slots => {
    ring.slots = slots;
    replace(bands, ...pieces(slots));
    ring.pick(ring.at);
  };
  /** What the middle says while no slot is chosen. */
  ring.rest = (first, second) => {
    ring.idle = [first, second];
    if (ring.at < 0) say(first, second);
  };
  /** Fades what is not of that node; none: fades nothing. @param {string} [node] */
  ring.light = node => bands.querySelectorAll("path").forEach(piece => piece.classList.toggle("faint", !!node && piece.dataset.node !== node));
  /** Shows which nodes cannot be reached. @param {Set<string>} gone */
  ring.gone = gone => bands.querySelectorAll("path").forEach(piece => piece.classList.toggle("gone", gone.has(piece.dataset.node)));
  listen(ring);
  return ring;
}

function short(replicas) {
  return replicas.length > 4 ? `${replicas.slice(0, 4).join(" · ")} +${replicas.length - 4}` : replicas.join(" · ");
}

function listen(ring) {
  const { picture } = ring;
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: SLOTS / CHUNKS, PageDown: -SLOTS / CHUNKS };
  picture.addEventListener("keydown", event => {
    const to = { Home: 0, End: SLOTS - 1, Escape: -1 }[event.key] ?? (event.key in steps ? (Math.max(ring.at, 0) + steps[event.key] + SLOTS) % SLOTS : undefined);
    if (to === undefined) return;
    event.preventDefault();
    ring.pick(to);
  });
  picture.addEventListener("pointermove", event => under(ring, event));
  picture.addEventListener("click", event => under(ring, event));
  picture.addEventListener("pointerleave", () => ring.pick(-1));
}

/** Picks the slot under the pointer. */
function under(ring, event) {
  const box = ring.picture.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * SIZE - MIDDLE, y = ((event.clientY - box.top) / box.height) * SIZE - MIDDLE;
  const from = Math.hypot(x, y);
  if (from < INNER - 10 || from > OUTER + 20) return ring.pick(-1);
  const turn = (Math.atan2(x, -y) / (2 * Math.PI) + 1) % 1;
  ring.pick(Math.floor(turn * SLOTS) % SLOTS);
}

/** Neighbours of one owner are one piece. */
function pieces(slots) {
  const copies = Math.max(...slots.map(slot => slot.replicas.length), 1);
  const thick = (OUTER - INNER - GAP * (copies - 1)) / copies;
  const drawn = [];
  for (let copy = 0; copy < copies; copy++) {
    const outer = OUTER - copy * (thick + GAP);
    for (let from = 0, to; from < slots.length; from = to) {
      const node = slots[from].replicas[copy];
      for (to = from + 1; to < slots.length && slots[to].replicas[copy] === node; ) to++;
      if (node) drawn.push(svg("path", { class: colour(node), d: sector(from, to, outer - thick, outer), "data-node": node }));
    }
  }
  return drawn;
}

/** A piece of a band: slots `from` to before `to`, between two radii. A whole ring is drawn as nearly one. */
function sector(from, to, inner, outer) {
  const end = to - from === SLOTS ? to - 0.001 : to;
  const large = end - from > SLOTS / 2 ? 1 : 0;
  const [a, b, c, d] = [point(from, outer), point(end, outer), point(end, inner), point(from, inner)];
  return `M${a}A${outer} ${outer} 0 ${large} 1 ${b}L${c}A${inner} ${inner} 0 ${large} 0 ${d}Z`;
}

function point(slot, radius) {
  const angle = (slot / SLOTS) * 2 * Math.PI;
  return `${(MIDDLE + radius * Math.sin(angle)).toFixed(2)} ${(MIDDLE - radius * Math.cos(angle)).toFixed(2)}`;
}

/** A stroke and a digit where each of the 16 chunks begins. */
function scale() {
  return Array.from({ length: CHUNKS }, (_, chunk) => {
    const slot = (chunk * SLOTS) / CHUNKS;
    const [x, y] = point(slot, OUTER + 13).split(" ");
    return svg("g", { class: "scale", "aria-hidden": "true" },
      svg("path", { d: `M${point(slot, OUTER + 1)}L${point(slot, OUTER + 5)}` }), svg("text", { x, y: Number(y) + 4 }, chunk.toString(16)));
  });
}

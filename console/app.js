/**
 * The frame: tabs, what the header says, and passing on what the stream tells to the view that is shown.
 */
import { el, replace, text } from "./dom.js";
import { counted, say } from "./format.js";
import { listen } from "./live.js";
import * as cluster from "./cluster.js";
import * as keys from "./keys.js";
import * as healing from "./healing.js";
import * as events from "./events.js";

/**
 * A view: `build` fills its panel once, `show` is called when it is chosen (with what stands behind its name in the
 * address), `update` for each snapshot while it is shown.
 */
const VIEWS = { cluster, keys, healing, events };
const byId = id => document.getElementById(id);

/** @type {import("./types").Snapshot | null} */
let snapshot = null;
/** @type {import("./types").Connection} */
let connection = "connecting";
let shown = "";

/** The view that the address names, and the rest of it. */
function addressed() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  return { name: Object.hasOwn(VIEWS, name) ? name : "cluster", rest: decode(rest.join("/")) };
}

/** A person may have typed a % that begins nothing. */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  if (location.hash === "#main" && shown) return;
  const { name, rest } = addressed();
  for (const view of Object.keys(VIEWS)) {
    const tab = byId(`tab-${view}`), chosen = view === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(`view-${view}`).hidden = !chosen;
  }
  shown = name;
  VIEWS[name].show?.(rest);
  update();
}

function update() {
  if (snapshot) VIEWS[shown].update(snapshot);
}

/** Arrow keys go from tab to tab, as in any list of tabs. */
function tabs() {
  const all = Object.keys(VIEWS).map(name => byId(`tab-${name}`));
  all.forEach((tab, at) => {
    tab.addEventListener("click", () => (location.hash = tab.id.slice("tab-".length)));
    tab.addEventListener("keydown", event => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = all.at(to % all.length);
      next.focus();
      next.click();
    });
  });
}

function header() {
  const status = snapshot?.health?.status;
  const kind = { healthy: "ok", degraded: "warn", unavailable: "bad" }[status] ?? "quiet";
  const word = !snapshot ? "no news yet" : status ?? "no cluster yet";
  const pills = [[byId("health"), kind, word], [byId("connection"), ...{ live: ["ok", "live"], lost: ["bad", "not heard"], connecting: ["quiet", "connecting"] }[connection]]];
  for (const [pill, of, is] of pills) {
    say(pill, of, is);
    pill.className = `pill ${of}`;
  }
  if (!snapshot) return;
  text(byId("seen"), `as ${snapshot.node} sees it`);
  const down = snapshot.health?.members_down.length ?? 0;
  document.title = `${down ? `(${down} down) ` : ""}a3.store · ${snapshot.node}`;
}

/** What stands in the way of all views, and what to do about it. */
function notice() {
  const box = byId("notice");
  const said = connection === "lost" ? lost() : snapshot && !snapshot.ready ? unready(snapshot) : null;
  box.hidden = !said;
  if (said && box.dataset.said !== said.key) replace(box, ...said.parts);
  box.dataset.said = said?.key ?? "";
  document.body.classList.toggle("stale", connection === "lost");
}

function lost() {
  const node = snapshot?.node ?? "The node";
  const others = (snapshot?.cluster?.members ?? []).filter(member => member.id !== snapshot.node && member.reachable);
  const links = others.map(member => el("a", { href: `//${member.http_address}/${location.hash}` }, member.id));
  const parts = [el("strong", {}, `${node} is not heard any more.`), " What you see is the last it told; the page tries again by itself."];
  if (links.length) parts.push(" Look at it from another node: ", ...links.flatMap(link => [link, " "]));
  return { key: `lost ${links.map(link => link.href)}`, parts };
}

function unready(told) {
  const waits = told.checks.filter(check => !check.ok);
  const why = waits.map(check => `${check.name}: ${check.detail}`).join("; ");
  return { key: why, parts: [el("strong", {}, `${told.node} does not answer clients yet.`), ` It waits for ${counted(waits.length, "thing")}: ${why}.`] };
}

function start() {
  for (const [name, view] of Object.entries(VIEWS)) view.build(byId(`view-${name}`));
  tabs();
  addEventListener("hashchange", show);
  show();
  listen({
    snapshot: told => {
      snapshot = told;
      header();
      notice();
      update();
    },
    event: events.add,
    connection: now => {
      connection = now;
      header();
      notice();
    },
  });
}

start();

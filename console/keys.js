/**
 * The view "Keys": all of them in order; reading, writing and deleting one.
 */
import * as api from "./api.js";
import { button, choice, el, empty, field, panel, replace } from "./dom.js";
import * as record from "./record.js";

/** How long a first press on "Delete" waits for the second, in milliseconds. */
const SURE_MS = 4000;

const LEVELS = [["", "quorum (as usual)"], ["one", "one"], ["all", "all"], ["linearizable", "linearizable"]];
const CONDITIONS = [["", "always"], ["absent", "only if there is no value"], ["present", "only if there is a value"], ["version", "only if the version is …"]];

const parts = {};

export function build(root) {
  parts.key = el("input", { id: "key", class: "mono", autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: 1024, required: true });
  parts.level = choice(LEVELS, { id: "level" });
  parts.result = el("div", { "aria-live": "polite", id: "result" });
  parts.prefix = el("input", { class: "mono", placeholder: "all", spellcheck: "false", oninput: () => list() });
  parts.list = el("ul", { class: "recent" });
  parts.more = button("More", () => list(parts.next));
  root.append(el("div", { class: "split keys" },
    panel("Key", [form()]), panel("Answer", [parts.result]), panel("Keys", [field("Prefix", parts.prefix), parts.list, parts.more])));
  list();
  replace(parts.result, empty("Nothing asked yet", "Type a key and press Get. To store a value, fill it in below and press Put."));
}

function form() {
  parts.value = el("textarea", { id: "value", class: "mono", rows: 5, spellcheck: "false" });
  parts.type = el("input", { id: "type", value: "text/plain; charset=utf-8", list: "types", autocomplete: "off" });
  parts.ttl = el("input", { id: "ttl", placeholder: "for ever", autocomplete: "off" });
  parts.condition = choice(CONDITIONS, { id: "condition", onchange: () => conditionChanged() });
  parts.version = el("input", { id: "version", class: "mono", autocomplete: "off", spellcheck: "false" });
  parts.versionField = field("Version", parts.version);
  parts.versionField.hidden = true;
  parts.remove = button("Delete", sure, { class: "danger" });
  return el("form", { onsubmit: event => {
    event.preventDefault();
    event.submitter?.value === "put" ? put() : get();
  } },
    field("Key", parts.key, "Any text; a / is part of it."),
    el("div", { class: "row" }, field("Consistency", parts.level), el("button", { class: "primary", value: "get" }, "Get")),
    el("fieldset", {}, el("legend", {}, "Write"),
      field("Value", parts.value),
      el("datalist", { id: "types" }, ...["text/plain; charset=utf-8", "application/json", "application/octet-stream"].map(value => el("option", { value }))),
      el("div", { class: "pair" }, field("Content type", parts.type), field("Lives for", parts.ttl, "Such as 60s, 15m, 24h.")),
      field("Condition", parts.condition), parts.versionField,
      el("div", { class: "row" }, el("button", { class: "primary", value: "put" }, "Put"), parts.remove)));
}

function conditionChanged() {
  parts.versionField.hidden = parts.condition.value !== "version";
}

/** Another part of the page, or the address, names a key. @param {string} key */
export function show(key) {
  if (!key || key === parts.key.value) return;
  parts.key.value = key;
  get();
}

/** The condition as headers. */
function conditions() {
  const tag = parts.version.value.trim().replaceAll('"', "");
  const headers = { absent: { "If-None-Match": "*" }, present: { "If-Match": "*" }, version: { "If-Match": `"${tag}"` } };
  return headers[parts.condition.value] ?? {};
}

/** Asks, and shows what came; an answer that a later question has overtaken is dropped. */
async function asking(key, question, shown) {
  if (!key) return parts.key.focus();
  const mine = (parts.asked = Symbol(key));
  parts.result.setAttribute("aria-busy", "true");
  const answer = await question();
  if (parts.asked !== mine) return;
  parts.result.removeAttribute("aria-busy");
  history.replaceState(null, "", `#keys/${encodeURIComponent(key)}`);
  replace(parts.result, answer.ok ? shown(answer) : record.refused(answer.problem, key));
  inSight();
  if (!answer.ok) noteVersion(answer);
  if (answer.status === 404) where(key, mine);
}

/** In a narrow window the answer stands below the form. */
function inSight() {
  const panel = parts.result.parentElement, { top } = panel.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) panel.scrollIntoView({ block: "start" });
}

/** A key without a value has its place all the same. */
async function where(key, mine) {
  const answer = await api.placement(key);
  if (answer.ok && parts.asked === mine) parts.result.append(record.place(answer.body));
}

function get() {
  const key = parts.key.value;
  return asking(key, () => api.record(key, parts.level.value), answer => {
    parts.version.value = answer.body.version;
    return record.found(answer.body, edit);
  });
}

function put() {
  const key = parts.key.value;
  const what = { value: parts.value.value, type: parts.type.value, ttl: parts.ttl.value.trim(), consistency: parts.level.value, headers: conditions() };
  return asking(key, () => api.put(key, what), written);
}

function remove() {
  const key = parts.key.value;
  return asking(key, () => api.remove(key, { consistency: parts.level.value, headers: conditions() }), written);
}

function written(answer) {
  parts.version.value = answer.body.version;
  list();
  return record.receipt(answer.body);
}

/** The version that stood in the way, so that the next try can name it. */
function noteVersion(answer) {
  const version = answer.headers.get("A3-Version");
  if (version) parts.version.value = version;
}

/** Deleting takes two presses. */
function sure() {
  if (!parts.key.value) return parts.key.focus();
  clearTimeout(parts.unsure);
  if (parts.remove.dataset.sure) {
    unsure();
    return remove();
  }
  parts.remove.dataset.sure = "yes";
  parts.remove.textContent = "Press again to delete";
  parts.unsure = setTimeout(unsure, SURE_MS);
}

function unsure() {
  delete parts.remove.dataset.sure;
  parts.remove.textContent = "Delete";
}

/** Takes a value into the form, to be written only where nobody wrote in between. */
function edit(told) {
  parts.value.value = told.value;
  parts.type.value = told.content_type;
  parts.version.value = told.version;
  parts.condition.value = "version";
  conditionChanged();
  parts.value.focus();
}

/** A page of keys, the first one unless told. @param {string} [cursor] */
async function list(cursor) {
  const mine = (parts.listed = Symbol());
  const { ok, body, problem } = await api.list(parts.prefix.value, cursor);
  if (parts.listed !== mine) return;
  if (!cursor) replace(parts.list);
  parts.list.append(...(ok ? body.items.map(entry) : [problem.title]));
  parts.next = body?.next;
  parts.more.hidden = !parts.next;
}

/** What is no text cannot be typed. */
const entry = ({ key, key_base64 }) =>
  el("li", {}, button(key, () => show(key), { class: "link mono", disabled: key_base64 }));

/** The answer stands until the next question. */
export function update() {}

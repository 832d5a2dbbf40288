/**
 * A value as text, as JSON or as bytes. It is looked at and never run: all of it goes onto the page as text.
 */
import { button, el, replace } from "./dom.js";
import { bytes } from "./format.js";

/** Bytes of a value that are shown at first; all of it on demand. */
const SHOWN_MAX = 64 * 1024;
/** Bytes in a line of the hexadecimal view. */
const LINE = 16;

/** The bytes of a record's value. @param {{ value?: string, value_base64?: string }} record @returns {Uint8Array} */
export function bytesOf(record) {
  if (record.value_base64 === undefined) return new TextEncoder().encode(record.value ?? "");
  return Uint8Array.from(atob(record.value_base64), character => character.charCodeAt(0));
}

/** The value with its three views. @param {{ value?: string, value_base64?: string, content_type: string }} record */
export function viewer(record) {
  const raw = bytesOf(record);
  const json = parsed(record.value);
  const views = {
    Text: record.value === undefined ? null : whole => shortened(record.value, whole),
    JSON: json === undefined ? null : whole => shortened(JSON.stringify(json, null, 2), whole),
    Hex: whole => hex(whole ? raw : raw.subarray(0, SHOWN_MAX)),
  };
  const body = el("pre", { class: "value", tabindex: 0, "aria-label": "Value" }), more = el("div", {});
  const buttons = Object.keys(views).map(name => button(name, () => show(name), { disabled: !views[name], title: views[name] ? false : `The value is no ${name === "JSON" ? "JSON" : "text (UTF-8)"}` }));

  function show(name, whole = raw.length <= SHOWN_MAX) {
    buttons.forEach(button => button.setAttribute("aria-pressed", String(button.textContent === name)));
    body.textContent = raw.length ? views[name](whole) : "";
    body.dataset.empty = raw.length ? "" : "the empty value";
    replace(more, !whole && button(`Show all ${bytes(raw.length)}`, () => show(name, true)));
  }

  show(json !== undefined && /json/i.test(record.content_type) ? "JSON" : views.Text ? "Text" : "Hex");
  return el("div", {}, el("div", { class: "choices", role: "group", "aria-label": "View of the value" }, ...buttons), body, more);
}

function parsed(value) {
  try {
    return value === undefined ? undefined : JSON.parse(value);
  } catch {
    return undefined;
  }
}

function shortened(value, whole) {
  return whole ? value : value.slice(0, SHOWN_MAX);
}

/** As `hexdump -C` has it: where, the bytes, and what of them is ASCII. @param {Uint8Array} raw */
function hex(raw) {
  const lines = [];
  for (let at = 0; at < raw.length; at += LINE) {
    const part = [...raw.subarray(at, at + LINE)];
    const digits = part.map(byte => byte.toString(16).padStart(2, "0")).join(" ");
    const ascii = part.map(byte => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits.padEnd(LINE * 3 - 1)}  ${ascii}`);
  }
  return lines.join("\n");
}

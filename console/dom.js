/**
 * Building and updating the page. Text goes in as text, never as markup: there is no other way in this file.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown>} Props `on…` is a listener, `class` and the rest are attributes; false leaves one out.
 */

/**
 * An HTML element.
 * @param {string} tag @param {Props} [props] @param {...Child} children @returns {HTMLElement}
 */
export function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/**
 * An SVG element.
 * @param {string} tag @param {Props} [props] @param {...Child} children @returns {SVGElement}
 */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else attribute(node, name, value);
  }
  node.append(...children.filter(child => child || child === 0).map(child => (child instanceof Node ? child : String(child))));
  return node;
}

/** Sets an attribute, or takes it away where the value is false or nothing. */
export function attribute(node, name, value) {
  if (value === false || value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : String(value));
}

/** Sets a text, and touches the page only where it changes. */
export function text(node, value) {
  if (node.textContent !== String(value)) node.textContent = String(value);
}

/** @param {Element} node @param {...Child} children */
export function replace(node, ...children) {
  node.replaceChildren();
  fill(node, {}, children);
}

/**
 * Makes the children of a node follow a list: each item keeps its element, so focus and hover stay where they are.
 * @template T
 * @param {Element} parent @param {T[]} items @param {(item: T) => string} key
 * @param {(item: T) => Element} create @param {(node: Element, item: T) => void} [update]
 */
export function follow(parent, items, key, create, update) {
  const known = new Map([...parent.children].map(node => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let node = known.get(name);
    known.delete(name);
    if (!node) {
      node = create(item);
      node.dataset.key = name;
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    update?.(node, item);
  }
  for (const gone of known.values()) gone.remove();
}

/** A button that sends no form. @param {string} label @param {(event: Event) => void} onclick @param {Props} [props] */
export function button(label, onclick, props) {
  return el("button", { type: "button", onclick, ...props }, label);
}

/** A row of a table. @param {...Child} cells what stands in each */
export function row(...cells) {
  return el("tr", {}, ...cells.map(cell => el("td", {}, ...[cell].flat())));
}

/** A panel with a heading; what stands beside the heading comes last. */
export function panel(title, body, beside) {
  return el("section", { class: "panel" }, el("div", { class: "head" }, el("h2", {}, title), beside), ...[body].flat());
}

/** A field with its label. */
export function field(label, input, help) {
  const id = input.id || `field-${label.toLowerCase().replace(/\W+/g, "-")}`;
  input.id = id;
  const note = help && el("small", { id: `${id}-help` }, help);
  if (note) input.setAttribute("aria-describedby", note.id);
  return el("div", { class: "field" }, el("label", { for: id }, label), input, note);
}

/** A choice of options, as [value, label] pairs. */
export function choice(options, props) {
  return el("select", props, ...options.map(([value, label]) => el("option", { value }, label)));
}

/** What is shown where there is nothing: what that means, and what to do. */
export function empty(title, help) {
  return el("div", { class: "empty" }, el("p", {}, el("strong", {}, title)), help && el("p", {}, help));
}

/** A table whose columns are named; its body is the last child of the answer's table. */
export function table(caption, columns) {
  const body = el("tbody", {});
  const head = el("tr", {}, ...columns.map(column => el("th", { scope: "col", class: column.startsWith("#") && "number" }, column.replace("#", ""))));
  const whole = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, head), body));
  return { whole, body };
}

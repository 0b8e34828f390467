// Elements without markup from strings: nothing that a worker or a model says can become part of the page's code.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. `class` and the like are attributes; a null one is left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for what is inside of an <svg>. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    set(element, name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Sets or removes (null) an attribute; touches nothing that is so already: screen readers tell of every change. */
export function set(element, name, value) {
  if (value === null || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

/** The text of an element, if it is another one than before. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A custom property or a style: through the object model, which the Content-Security-Policy allows. */
export function style(element, name, value) {
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/**
 * Children of `parent`, one for each item in its order; what stays is changed in place, so that focus, selection and
 * opened details stay too. `create(item)` gives {node, update(item)}.
 */
export function keyed(parent, items, keyOf, create) {
  const known = parent.parts ?? (parent.parts = new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, part] of known) {
    if (!wanted.has(key)) {
      part.node.remove();
      known.delete(key);
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let part = known.get(key);
    if (part === undefined) {
      part = create(item);
      known.set(key, part);
    }
    if (part.node === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(part.node, place);
    }
    part.update(item);
  }
}

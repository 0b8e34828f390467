// A few minutes of one or two numbers, drawn small.

import { s, set } from "./dom.js";

/** Seconds from the left edge to the right one. */
export const SPAN_S = 180;
const HEIGHT = 40;
/** Points further apart than this are not joined: nobody looked in between. */
const GAP_S = 4;

/** Lines over the last SPAN_S seconds; the first one is filled. */
export class Sparkline {
  #lines;
  #area;
  #marks;
  #ceiling;
  #least;

  /**
   * `series`: names of the numbers in a point, the main one first. `ceiling`: the value at the top, if it is not the
   * largest one shown; `least`: the top is never below it.
   */
  constructor({ series, ceiling = null, least = 0 }) {
    this.#ceiling = ceiling;
    this.#least = least;
    this.#area = s("path", { class: "area" });
    this.#lines = series.map((name, index) => [name, s("path", { class: `line line-${index}` })]);
    this.#marks = s("path", { class: "marks" });
    const lines = this.#lines.map(([, path]) => path).reverse();
    this.node = s(
      "svg",
      { class: "spark", viewBox: `0 0 ${SPAN_S} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.#marks,
      this.#area,
      ...lines,
    );
  }

  /** `points`: {at, …}, oldest first; `marks`: moments; all in Unix seconds, as is `end`, the right edge. */
  update(points, end, marks) {
    let top = this.#ceiling ?? this.#least;
    if (this.#ceiling === null) {
      for (const point of points) for (const [name] of this.#lines) top = Math.max(top, point[name] ?? 0);
    }
    const x = (at) => (SPAN_S - (end - at)).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (HEIGHT - 4) * Math.min(1, top > 0 ? value / top : 0)).toFixed(1);
    this.#lines.forEach(([name, path], index) => {
      const pieces = joined(points, name);
      set(path, "d", pieces.map((piece) => line(piece, name, x, y)).join(""));
      if (index === 0) set(this.#area, "d", pieces.map((piece) => area(piece, name, x, y)).join(""));
    });
    set(this.#marks, "d", marks.map((at) => `M${x(at)} 0V${HEIGHT}`).join(""));
    return top;
  }
}

/** Stretches without a gap. */
function joined(points, name) {
  const pieces = [];
  let last = null;
  for (const point of points) {
    if (point[name] === null || point[name] === undefined) continue;
    if (last === null || point.at - last > GAP_S) pieces.push([]);
    pieces[pieces.length - 1].push(point);
    last = point.at;
  }
  return pieces;
}

function line(piece, name, x, y) {
  const [first] = piece;
  if (piece.length === 1) return `M${x(first.at - 0.5)} ${y(first[name])}H${x(first.at + 0.5)}`;
  return `M${piece.map((point) => `${x(point.at)} ${y(point[name])}`).join("L")}`;
}

function area(piece, name, x, y) {
  const last = piece[piece.length - 1];
  return `M${x(piece[0].at)} ${HEIGHT}L${piece.map((p) => `${x(p.at)} ${y(p[name])}`).join("L")}L${x(last.at)} ${HEIGHT}Z`;
}

// Throughput, latency and load: the number of now, and how it came to it.

import { h, say, set } from "./dom.js";
import { ago, count, durationParts, percent, rate } from "./format.js";
import { SPAN_S, Sparkline } from "./sparkline.js";
import { PLANNED } from "./words.js";

const seconds = (value) => durationParts(value);
const together = (parts) => parts.join(" ");

const TILES = [
  {
    label: "Throughput",
    series: ["generated_tokens_per_s"],
    least: 1,
    show: (value) => [rate(value), "tokens/s"],
    scale: rate,
    note: (point) => (point.prompt_tokens_per_s > 0 ? `and ${rate(point.prompt_tokens_per_s)}/s of prompts read` : ""),
    marked: true,
  },
  {
    label: "First token",
    series: ["first_token_p50_s", "first_token_p99_s"],
    show: seconds,
    scale: (value) => together(seconds(value)),
    note: (point) => `99 % within ${together(seconds(point.first_token_p99_s))}`,
    marked: true,
  },
  {
    label: "Between tokens",
    series: ["inter_token_p50_s", "inter_token_p99_s"],
    show: seconds,
    scale: (value) => together(seconds(value)),
    note: (point) => `99 % within ${together(seconds(point.inter_token_p99_s))}`,
    marked: true,
  },
  {
    label: "Requests",
    series: ["running", "waiting"],
    least: 2,
    show: (value) => [count(value), "running"],
    scale: count,
    note: (point) => requestNote(point),
  },
  {
    label: "KV cache",
    series: ["kv_cache_usage_ratio"],
    ceiling: 1,
    show: (value) => percent(value).split(" "),
    note: () => "in use",
  },
];

function requestNote(point) {
  const waiting = point.waiting ? `${count(point.waiting)} waiting` : "none waiting";
  return point.failed_per_s > 0 ? `${waiting}, ${rate(point.failed_per_s)}/s fail` : waiting;
}

/** The row of tiles. */
export class Tiles {
  #tiles;

  constructor(parent) {
    this.#tiles = TILES.map((what) => new Tile(what));
    parent.append(...this.#tiles.map((tile) => tile.node));
  }

  /** `points`: the last minutes, oldest first; `snapshot`: now. */
  update(points, snapshot) {
    const end = snapshot.unix_s;
    const marks = (snapshot.history ?? [])
      .filter((epoch) => epoch.recovery !== null && !PLANNED.has(epoch.recovery.cause))
      .map((epoch) => epoch.began_unix_s)
      .filter((at) => end - at < SPAN_S);
    for (const tile of this.#tiles) tile.update(points, end, marks);
  }
}

class Tile {
  #what;
  #spark;
  #value = h("span", { class: "value" });
  #unit = h("span", { class: "unit" });
  #note = h("p", { class: "note" });
  #top = h("span", { class: "top-value" });
  #points = [];
  #end = 0;
  #pointed = null;

  constructor(what) {
    this.#what = what;
    this.#spark = new Sparkline(what);
    const chart = h("div", { class: "chart" }, this.#spark.node);
    this.node = h(
      "article",
      { class: "tile" },
      h("header", {}, h("h2", {}, what.label), this.#top),
      h("p", { class: "figure" }, this.#value, " ", this.#unit),
      this.#note,
      chart,
    );
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      this.#pointed = 1 - (event.clientX - box.left) / box.width;
      this.#show();
    });
    chart.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.#show();
    });
  }

  update(points, end, marks) {
    this.#points = points;
    this.#end = end;
    const top = this.#spark.update(points, end, this.#what.marked ? marks : []);
    // The scale, where it is not plain: a chart of percent ends at 100.
    const plain = this.#what.ceiling !== undefined || top <= (this.#what.least ?? 0);
    say(this.#top, plain ? "" : `up to ${this.#what.scale(top)}`);
    this.#show();
  }

  /** The newest number, or the one that is pointed at. */
  #show() {
    const { series, show, note } = this.#what;
    const at = this.#pointed === null ? this.#end : this.#end - this.#pointed * SPAN_S;
    const point = nearest(this.#points, at, series[0], this.#pointed === null ? SPAN_S : 3);
    const old = point !== null && this.#end - point.at > 3;
    set(this.node, "data-stale", old || point === null ? "" : null);
    const [value, unit] = point === null ? ["–", ""] : show(point[series[0]]);
    say(this.#value, value);
    say(this.#unit, unit);
    say(this.#note, point === null ? "nothing measured" : old ? ago(this.#end - point.at) : note(point));
  }
}

/** The newest point that has the number, not after `at` and not older than `within_s`. */
function nearest(points, at, name, within) {
  for (let index = points.length - 1; index >= 0; index -= 1) {
    const point = points[index];
    if (point.at > at + 0.5) continue;
    if (at - point.at > within) return null;
    if (point[name] !== null && point[name] !== undefined) return point;
  }
  return null;
}

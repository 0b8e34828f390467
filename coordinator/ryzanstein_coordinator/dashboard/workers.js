// One row per worker: rank, heartbeat (ticking), device, memory, step, communication.

import { h, keyed, say, set, style } from "./dom.js";
import { bytes, count, duration, percent } from "./format.js";
import { WORKER_LOOKS } from "./words.js";

/** Fraction of a lease from which on a silence is worth a colour; the coordinator calls it suspect then. */
const SUSPECT = 0.6;

/** The reader wants nothing to move. */
const STILL = matchMedia("(prefers-reduced-motion: reduce)");

const MEMORY = [
  ["weights", "weights"],
  ["kv", "KV"],
  ["other", "other"],
];

/** The table. */
export class Workers {
  #rows;
  #empty;
  #aside;
  #ages = new Map();

  constructor(rows, empty, aside) {
    this.#rows = rows;
    this.#empty = empty;
    this.#aside = aside;
  }

  update(snapshot, received) {
    const groups = snapshot.groups.length > 1;
    const workers = [...snapshot.workers].sort(byPlace);
    for (const worker of workers) this.heard(worker.id, worker.heartbeat_age_s, received);
    keyed(this.#rows, workers, (worker) => worker.id, () => new Row(groups));
    set(this.#empty, "hidden", workers.length > 0 ? "" : null);
    say(this.#aside, summary(workers));
  }

  /** The age of a worker's heartbeat, as of `received` (milliseconds of performance.now). */
  heard(id, age, received) {
    this.#ages.set(id, { age, received });
  }

  /** Time goes on. */
  tick(now) {
    for (const [id, part] of this.#rows.parts ?? []) {
      const heard = this.#ages.get(id);
      if (heard) part.tick(heard.age + (now - heard.received) / 1000);
    }
  }
}

function byPlace(a, b) {
  const order = (worker) => [worker.rank === null ? 1 : 0, worker.group ?? "~", worker.rank ?? 0, worker.id];
  const [left, right] = [order(a), order(b)];
  const at = left.findIndex((value, index) => value !== right[index]);
  return at < 0 ? 0 : left[at] < right[at] ? -1 : 1;
}

function summary(workers) {
  const states = new Map();
  for (const worker of workers) states.set(worker.state, (states.get(worker.state) ?? 0) + 1);
  return [...states].map(([state, number]) => `${number} ${state}`).join(", ");
}

class Row {
  #groups;
  #rank = h("b", { class: "rank" });
  #name = h("span", { class: "name" });
  #state = h("span", { class: "state" });
  #where = h("span", { class: "sub" });
  #beat = h("span", { class: "beat", "aria-hidden": "true" });
  #age = h("span", { class: "age" });
  #meter = h("span", { class: "meter" }, h("i"));
  #device = h("span");
  #health = h("span", { class: "sub" });
  #used = h("span");
  #bar = h("span", { class: "memory-bar", "aria-hidden": "true" }, ...MEMORY.map(([part]) => h("i", { class: part })));
  #parts = h("span", { class: "sub" });
  #duration = h("span");
  #step = h("span", { class: "sub" });
  #share = h("span");
  #shareBar = h("span", { class: "share-bar", "aria-hidden": "true" }, h("i"));
  #collective = h("span", { class: "sub" });
  #lease = 1;
  #shownAge = Infinity;
  #alive = true;

  constructor(groups) {
    this.#groups = groups;
    const cell = (name, ...content) => h("div", { role: "cell", class: `cell-${name}`, "data-label": name }, ...content);
    this.node = h(
      "div",
      { class: "worker", role: "row" },
      cell("rank", this.#rank),
      cell("worker", h("span", { class: "pair" }, this.#name, this.#state), this.#where),
      cell("heartbeat", h("span", { class: "pair" }, this.#beat, this.#age), this.#meter),
      cell("device", this.#device, this.#health),
      cell("memory", this.#used, this.#bar, this.#parts),
      cell("step", this.#duration, this.#step),
      cell("communication", h("span", { class: "pair" }, this.#share, this.#shareBar), this.#collective),
    );
  }

  update(worker) {
    this.#alive = worker.state !== "lost";
    this.#lease = worker.lease_ttl_s;
    set(this.node, "data-look", WORKER_LOOKS[worker.state] ?? "idle");
    say(this.#rank, worker.rank === null ? "–" : String(worker.rank));
    set(this.#rank, "aria-label", worker.rank === null ? "no rank" : null);
    say(this.#name, worker.id);
    say(this.#state, stateText(worker));
    say(this.#where, placeText(worker, this.#groups));
    this.#showDevice(worker);
    this.#showMemory(worker);
    this.#showStep(worker);
  }

  tick(age) {
    if (age < this.#shownAge - 0.02 && this.#alive && !STILL.matches) {
      // A beat has come: the dot starts anew.
      this.#beat.getAnimations().forEach((animation) => animation.cancel());
      this.#beat.animate([{ opacity: 1 }, { opacity: 0.25 }], { duration: 600, easing: "ease-out", fill: "forwards" });
    }
    this.#shownAge = age;
    const share = age / this.#lease;
    say(this.#age, this.#alive ? duration(age) : `${duration(age)} ago`);
    style(this.#meter, "--share", String(Math.min(1, share).toFixed(2)));
    const look = !this.#alive || share >= 1 ? "bad" : share >= SUSPECT ? "warn" : "ok";
    set(this.#meter, "data-look", look);
    set(this.#meter, "title", `${duration(age)} of a lease of ${duration(this.#lease)}`);
  }

  #showDevice(worker) {
    const health = worker.device_health;
    say(this.#device, worker.device);
    const told = [];
    if (health?.failure) told.push(health.failure);
    if (health && health.utilization_ratio !== null) told.push(`${percent(health.utilization_ratio)} busy`);
    if (health && health.temperature_celsius !== null) told.push(`${health.temperature_celsius.toFixed(0)} °C`);
    if (health?.ecc_errors) told.push(`${count(health.ecc_errors)} ECC errors`);
    say(this.#health, told.length > 0 ? told.join(", ") : worker.device_name);
    set(this.#health, "data-look", health?.failure || health?.ecc_errors ? "bad" : null);
    set(this.#health, "title", worker.device_name);
  }

  #showMemory(worker) {
    const { total_bytes: total, used_bytes: used, weights_bytes: weights, kv_cache_bytes: kv } = worker.memory;
    const other = Math.max(0, used - weights - kv);
    const held = weights + kv + other;
    say(this.#used, held ? `${bytes(held)} of ${bytes(total)}` : bytes(total));
    const parts = { weights, kv, other };
    MEMORY.forEach(([part], index) => {
      style(this.#bar.children[index], "--share", total ? (parts[part] / total).toFixed(4) : "0");
    });
    const shown = MEMORY.map(([part, name]) => ({ part, name, held: parts[part] })).filter((each) => each.held > held / 100);
    keyed(this.#parts, shown, ({ part }) => part, ({ part }) => {
      const text = h("span", {});
      const node = h("span", { class: `legend ${part}` }, h("i", { "aria-hidden": "true" }), text);
      return { node, update: (each) => say(text, `${each.name} ${bytes(each.held)}`) };
    });
  }

  #showStep(worker) {
    const steps = worker.rank !== null && worker.step > 0;
    set(this.node, "data-idle", steps ? null : "");
    say(this.#duration, steps ? duration(worker.step_duration_s) : "–");
    say(this.#step, steps ? `step ${count(worker.step)}` : "");
    say(this.#share, steps ? percent(worker.communication_ratio) : "–");
    style(this.#shareBar, "--share", steps ? worker.communication_ratio.toFixed(3) : "0");
    const last = worker.last_collective;
    say(this.#collective, steps && last ? `${last.name} #${count(last.sequence)}` : "");
  }
}

function stateText(worker) {
  const loading = worker.state === "loading" && worker.load_progress > 0 && worker.load_progress < 1;
  return loading ? `${worker.state} ${percent(worker.load_progress)}` : worker.state;
}

function placeText(worker, groups) {
  const place = [worker.host, `process ${worker.pid}`];
  if (groups && worker.group !== null) place.unshift(`group ${worker.group}`);
  const plain = ["serving", "waiting", "loaded", "loading", ""];
  // A reason begins with whose it is, which stands above it.
  const phase = worker.phase.startsWith(worker.id) ? worker.phase.slice(worker.id.length).replace(/^ \(rank \d+\)/, "") : worker.phase;
  if (!plain.includes(phase)) place.unshift(phase.trim());
  return place.join(" · ");
}

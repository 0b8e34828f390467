// The history of epochs: what ended each, who was to blame, how long it took to go on.

import { h, keyed, say, set, style } from "./dom.js";
import { ago, duration, moment, plural } from "./format.js";
import { CAUSES, PLANNED, where, who } from "./words.js";

/** Moments of a recovery, as parts of a bar. */
const PHASES = [
  ["detected", "seen"],
  ["fenced", "fenced"],
  ["reformed", "formed again"],
  ["first_token", "next token"],
];

/** Fills the list. */
export function showEpochs(list, empty, snapshot) {
  const epochs = snapshot.history ?? [];
  const groups = snapshot.groups.length > 1;
  set(empty, "hidden", epochs.length > 0 ? "" : null);
  keyed(list, epochs, (epoch) => `${epoch.group} ${epoch.epoch}`, () => new Entry(groups, () => snapshot.unix_s));
  for (const part of list.parts.values()) part.age(snapshot.unix_s);
}

class Entry {
  #groups;
  #epoch = null;
  #number = h("b", { class: "number" });
  #when = h("time", { class: "when" });
  #title = h("span", { class: "title" });
  #bar = h("span", { class: "phases", "aria-hidden": "true" }, ...PHASES.map(([name]) => h("i", { class: name })));
  #times = h("span", { class: "sub" });
  #reason = h("p", {});
  #more = h("p", { class: "sub" });

  constructor(groups) {
    this.#groups = groups;
    this.node = h(
      "li",
      { class: "epoch" },
      h(
        "details",
        {},
        h("summary", {}, this.#number, h("span", { class: "what" }, this.#title, this.#bar, this.#times), this.#when),
        h("div", { class: "more" }, this.#reason, this.#more),
      ),
    );
  }

  update(epoch) {
    this.#epoch = epoch;
    const { recovery } = epoch;
    const planned = recovery === null || PLANNED.has(recovery.cause);
    set(this.node, "data-look", planned ? "ok" : epoch.served_unix_s === null && epoch.ended_unix_s === null ? "bad" : "fault");
    say(this.#number, String(epoch.epoch));
    set(this.#number, "aria-label", `Epoch ${epoch.epoch}`);
    say(this.#title, title(epoch, this.#groups));
    say(this.#times, times(epoch));
    this.#showPhases(recovery);
    say(this.#reason, recovery?.reason || epoch.reason);
    say(this.#more, more(epoch));
    set(this.#when, "datetime", new Date(epoch.began_unix_s * 1000).toISOString());
    set(this.#when, "title", moment(epoch.began_unix_s));
  }

  age(now) {
    say(this.#when, ago(now - this.#epoch.began_unix_s));
  }

  #showPhases(recovery) {
    const whole = recovery === null ? 0 : recovery.first_token_s ?? recovery.reformed_s ?? 0;
    set(this.#bar, "hidden", whole > 0 ? null : "");
    let before = 0;
    PHASES.forEach(([name], index) => {
      const until = recovery?.[`${name}_s`] ?? before;
      style(this.#bar.children[index], "--share", whole > 0 ? (Math.max(0, until - before) / whole).toFixed(3) : "0");
      before = Math.max(before, until);
    });
  }
}

function title(epoch, groups) {
  const prefix = groups ? `Group ${epoch.group}: ` : "";
  const { recovery } = epoch;
  if (recovery === null) return `${prefix}${epoch.served_unix_s === null ? "Starting" : "Started"}`;
  const what = CAUSES[recovery.cause] ?? recovery.cause;
  if (recovery.culprit === null) return `${prefix}${what[0].toUpperCase()}${what.slice(1)}`;
  return `${prefix}${who(recovery.culprit)}: ${what}`;
}

function times(epoch) {
  const { recovery } = epoch;
  const ranks = plural(epoch.tensor_parallel_size, "rank");
  if (epoch.served_unix_s === null) {
    return epoch.ended_unix_s === null ? `${ranks}, not serving yet` : `${ranks}, never served`;
  }
  if (recovery === null) return `${ranks}, after ${duration(epoch.served_unix_s - epoch.began_unix_s)}`;
  const parts = [];
  if (recovery.reformed_s !== null) parts.push(`formed again after ${duration(recovery.reformed_s)}`);
  if (recovery.first_token_s !== null) parts.push(`next token after ${duration(recovery.first_token_s)}`);
  if (recovery.requests_resumed) parts.push(`${plural(recovery.requests_resumed, "stream")} went on`);
  return parts.join(", ");
}

function more(epoch) {
  const parts = [];
  const { recovery } = epoch;
  if (recovery?.culprit) parts.push(`${recovery.culprit.worker_id}: ${where(recovery.culprit)}`);
  if (recovery) {
    const known = PHASES.filter(([name]) => recovery[`${name}_s`] !== null);
    parts.push(known.map(([name, text]) => `${text} ${duration(recovery[`${name}_s`])}`).join(", "));
  }
  if (epoch.members.length > 0) parts.push(`ranks: ${epoch.members.join(", ")}`);
  if (epoch.served_unix_s !== null) {
    const stood = epoch.ended_unix_s === null ? null : epoch.ended_unix_s - epoch.served_unix_s;
    parts.push(stood === null ? `serves since ${moment(epoch.served_unix_s)}` : `served for ${duration(stood)}`);
  }
  return parts.filter(Boolean).join(". ");
}

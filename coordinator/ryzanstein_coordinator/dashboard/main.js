// The page: follows the cluster, keeps the last minutes, and hands what came to its parts.

import { h, keyed, say, set } from "./dom.js";
import { showEpochs } from "./epochs.js";
import { Follower } from "./events.js";
import { count, parameters } from "./format.js";
import { authorization, forget, remember } from "./keys.js";
import { wirePrompt } from "./prompt.js";
import { SPAN_S } from "./sparkline.js";
import { Tiles } from "./tiles.js";
import { verdict } from "./verdict.js";
import { Workers } from "./workers.js";

const PULSE_S = 0.25;
const TICK_MS = 100;
/** Without news for so long nobody knows how old the heartbeats are: it may be the coordinator that is away. */
const TICK_ON_MS = 800;

const at = (id) => document.getElementById(id);
const tiles = new Tiles(at("tiles"));
const workers = new Workers(at("worker-rows"), at("workers-empty"), at("workers-aside"));
/** `since`: when it came to be so. */
const link = { state: "connecting", since: new Date() };
let snapshot = null;
/** When something came last, on the clock of performance.now. */
let heardAt = 0;
/** {at: Unix seconds, …}, oldest first. */
let points = [];

function connected(state) {
  if (link.state !== state) {
    link.since = new Date();
    if (state === "open") loadActivity();
  }
  link.state = state;
  set(at("locked"), "hidden", state === "locked" ? null : "");
  if (state === "locked") {
    forget("operations");
    at("operations-key").focus();
  }
  set(document.documentElement, "data-link", state);
  showLink();
  showVerdict();
}

function received(event) {
  const now = performance.now();
  heardAt = now;
  const data = JSON.parse(event.data);
  if (event.event === "pulse") {
    for (const [id, age] of Object.entries(data.heartbeat_age_s)) workers.heard(id, age, now);
    return;
  }
  snapshot = data;
  remembered(snapshot);
  tiles.update(points, snapshot);
  workers.update(snapshot, now);
  showEpochs(at("epochs"), at("epochs-empty"), snapshot);
  showVerdict();
  showFacts();
}

/** One point a second is enough. */
function remembered({ unix_s, traffic }) {
  if (!traffic) return;
  const newest = points.at(-1);
  if (newest !== undefined && unix_s - newest.at < 0.9) return;
  points.push({ at: unix_s, ...traffic });
  points = points.filter((point) => unix_s - point.at < SPAN_S + 2);
}

/** What came before this page was opened, or while it was disconnected. */
async function loadActivity() {
  try {
    const response = await fetch(`cluster/activity?seconds=${SPAN_S}`, {
      headers: authorization("operations"),
      cache: "no-store",
      credentials: "omit",
    });
    if (!response.ok) return;
    const { unix_s, points: known } = await response.json();
    const past = known.map((point, index) => ({ at: unix_s - (known.length - 1 - index), ...point }));
    const newest = past.at(-1)?.at ?? 0;
    points = [...past, ...points.filter((point) => point.at > newest + 0.9)];
    if (snapshot !== null) tiles.update(points, snapshot);
  } catch {
    // the charts begin now, then; that the coordinator is away is shown by whoever follows it
  }
}

function showVerdict() {
  const { level, title, detail, blame } = verdict(snapshot, link);
  set(at("verdict"), "data-level", level);
  say(at("verdict-title"), title);
  say(at("verdict-detail"), detail);
  say(at("verdict-blame"), blame ?? "");
  set(at("verdict-blame"), "hidden", blame === null ? "" : null);
  // Apart from what is seen: only these two are worth an interruption by a screen reader.
  say(at("announced"), blame === null ? title : `${title}. ${blame}`);
  const name = snapshot?.model?.name;
  document.title = name ? `${title} – ${name}` : `${title} – Ryzanstein`;
}

function showLink() {
  const texts = { connecting: "connecting", open: "live", locked: "locked" };
  say(at("link-text"), texts[link.state] ?? "disconnected");
}

function showFacts() {
  const { model, groups } = snapshot;
  const rounded = model && !["", "none", undefined].includes(model.quantization) ? `, weights ${model.quantization}` : "";
  say(at("model"), model ? `${model.name}, ${parameters(model.parameters)} parameters, ${model.dtype}${rounded}` : "");
  say(at("release"), snapshot.release ? `Ryzanstein ${snapshot.release}` : "");
  const ranks = snapshot.workers.filter((worker) => worker.rank !== null).length;
  const wanted = groups.reduce((sum, group) => sum + group.full_tensor_parallel_size, 0);
  // One that has a group stands by only until that is formed again.
  const spares = snapshot.workers.filter((worker) => worker.state === "standby" && worker.group === null).length;
  const facts = [
    ["Epoch", groups.map((group) => group.epoch).join(", ")],
    ["Ranks", `${ranks} of ${wanted}`],
    ["Spares", String(spares)],
    ["Context", model ? `${count(model.max_model_len)} tokens` : "–"],
  ];
  keyed(at("facts"), facts, ([name]) => name, ([name]) => {
    const value = h("dd");
    return { node: h("div", {}, h("dt", {}, name), value), update: ([, text]) => say(value, text) };
  });
}

const follower = new Follower(`cluster/events?pulse=${PULSE_S}`, {
  headers: () => authorization("operations"),
  onEvent: received,
  onState: connected,
});

at("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  remember("operations", at("operations-key").value);
  at("operations-key").value = "";
  say(at("locked-why"), "That key was refused. It needs the role “operations”.");
  follower.unlock();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) follower.hurry();
});
wirePrompt(
  {
    form: at("try"),
    prompt: at("prompt"),
    maxTokens: at("max-tokens"),
    temperature: at("temperature"),
    send: at("send"),
    answer: at("answer"),
    measured: at("measured"),
    endpoint: at("try-endpoint"),
    keyRow: at("inference-key-row"),
    key: at("inference-key"),
  },
  () => snapshot?.model?.name ?? "",
);
setInterval(() => {
  workers.tick(Math.min(performance.now(), heardAt + TICK_ON_MS));
}, TICK_MS);
follower.run();

// The first question: does it serve, and who is to blame if not. A pure function of what is known.

import { ago, duration, percent, plural } from "./format.js";
import { CAUSES, PLANNED, where, who } from "./words.js";

/** A recovery is worth a sentence for so long after it. */
const RECENT_S = 120;

/**
 * `snapshot` as of /cluster, or null; `link`: {state, since} of the connection, since a Date. →
 * {level: ok|warn|bad|unknown, title, detail, blame}, the last one null if nobody is to blame.
 */
export function verdict(snapshot, link) {
  if (snapshot === null) {
    if (link.state === "lost") {
      return said("bad", "The coordinator does not answer", "Nothing has come from it yet. Trying again.");
    }
    const locked = link.state === "locked";
    return said("unknown", locked ? "Locked" : "Connecting", locked ? "An API key is needed to look." : "");
  }
  if (link.state === "lost") {
    return said(
      "bad",
      "The coordinator does not answer",
      `Everything below is as it was at ${link.since.toLocaleTimeString()}. Trying again.`,
    );
  }
  return snapshot.readiness?.ready ? serving(snapshot) : notServing(snapshot);
}

function serving(snapshot) {
  const last = lastRecovery(snapshot);
  const back = last === null ? null : afterwards(last.recovery, snapshot.unix_s - last.served_unix_s);
  if (snapshot.state === "degraded" || snapshot.groups.some((group) => group.state === "degraded")) {
    return said("warn", "Serving with fewer ranks", firstUpper(snapshot.readiness.reason), blameOf(last?.recovery));
  }
  const down = snapshot.groups.filter((group) => group.state !== "serving");
  if (down.length > 0) {
    const names = down.map((group) => `${group.id} is ${group.state}`).join(", ");
    return said("warn", "Serving, but not with every group", `${names}: ${down[0].reason}`, blameOf(openRecovery(snapshot)));
  }
  const running = snapshot.requests?.running ?? 0;
  return said("ok", "Serving", back ?? (running ? `${plural(running, "request")} running.` : "Idle, ready for requests."));
}

function notServing(snapshot) {
  const reason = reasonOf(snapshot);
  const open = openRecovery(snapshot);
  switch (snapshot.state) {
    case "recovering":
      return said("bad", "Not serving: recovering", "Streams wait and go on where they were.", blameOf(open) ?? reason);
    case "loading": {
      const loading = snapshot.workers.filter((worker) => worker.state === "loading");
      const done = loading.reduce((sum, worker) => sum + worker.load_progress, 0) / Math.max(1, loading.length);
      return said("warn", `Not serving yet: loading, ${percent(done)}`, reason, blameOf(open));
    }
    case "forming":
      return said("warn", "Not serving yet: forming the group", reason, blameOf(open));
    case "waiting":
      return said(open === null ? "warn" : "bad", "Not serving: waiting for workers", reason, blameOf(open));
    case "draining":
      return said("warn", "Stopping", "Running streams end, nothing new is taken.");
    default:
      return said("bad", "Not serving", reason, blameOf(open));
  }
}

/** Why not, in the group's own words where there is but one group that has a reason. */
function reasonOf({ groups, readiness }) {
  const own = groups.length === 1 && !["serving", "degraded"].includes(groups[0].state) ? groups[0].reason : "";
  return firstUpper(own || (readiness?.reason ?? ""));
}

function said(level, title, detail, blame = null) {
  return { level, title, detail, blame };
}

/** The newest epoch that came of a fault and serves. */
function lastRecovery(snapshot) {
  const found = (snapshot.history ?? []).find((epoch) => epoch.recovery !== null && epoch.served_unix_s !== null);
  const old = found === undefined || snapshot.unix_s - found.served_unix_s > RECENT_S;
  return old || PLANNED.has(found.recovery.cause) ? null : found;
}

function openRecovery(snapshot) {
  const last = snapshot.last_recovery;
  return last !== null && last.reformed_s === null ? last : null;
}

function blameOf(recovery) {
  if (!recovery || PLANNED.has(recovery.cause)) return null;
  const { culprit, cause, reason } = recovery;
  if (culprit === null) return firstUpper(reason);
  return `To blame: ${who(culprit)}, ${CAUSES[cause] ?? cause} (${where(culprit)}).`;
}

function afterwards(recovery, seconds) {
  const { culprit, cause } = recovery;
  const what = culprit === null ? firstUpper(CAUSES[cause] ?? cause) : `${who(culprit)}, ${CAUSES[cause] ?? cause}`;
  const back = duration(recovery.first_token_s ?? recovery.reformed_s ?? 0);
  const resumed = recovery.requests_resumed ? `; ${plural(recovery.requests_resumed, "stream")} went on` : "";
  return `${firstUpper(ago(seconds))}: ${what}. Back after ${back}${resumed}.`;
}

/** As a sentence begins; names, such as worker-1, stay as they are. */
function firstUpper(text) {
  return /^[a-z]+( |$)/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
}

// What states and causes are called.

/** What happened to the culprit, as the end of a sentence. */
export const CAUSES = {
  process: "its process died",
  lease: "stopped answering",
  collective: "failed in a collective",
  stuck: "stood still",
  device: "its device failed",
  memory: "ran out of memory",
  engine: "its engine failed",
  stream: "took no requests",
  drain: "was drained",
  resize: "number of ranks changed",
};

/** Nobody is to blame: somebody wanted it. */
export const PLANNED = new Set(["drain", "resize"]);

/** State of a worker → how it looks: ok, idle, busy, warn, bad. */
export const WORKER_LOOKS = {
  joining: "busy",
  standby: "idle",
  loading: "busy",
  active: "ok",
  suspect: "warn",
  lost: "bad",
  failed: "bad",
  draining: "warn",
};

/** `worker-1 (rank 1)`. */
export function who(culprit) {
  return culprit.rank === null ? culprit.worker_id : `${culprit.worker_id} (rank ${culprit.rank})`;
}

/** `host alpha, cuda:1, process 4711`. */
export function where(culprit) {
  return `host ${culprit.host}, ${culprit.device}, process ${culprit.pid}`;
}

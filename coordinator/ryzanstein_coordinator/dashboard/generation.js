// A streamed answer that survives the coordinator: the same Idempotency-Key and the last event's id go on where it was.

import { readEvents } from "./events.js";
import { authorization } from "./keys.js";

/** What an HTTP status or an event says is wrong. `status` 401 and 403: a key is needed. */
export class Refused extends Error {
  constructor(message, status, retryable) {
    super(message);
    this.status = status;
    this.retryable = retryable;
  }
}

/** A broken connection is mended for so long. */
const PATIENCE_MS = 60_000;

/**
 * Yields {text, tokens} as they come; `tokens` counts all so far. `kind`: "chat" or "text".
 * `onPause()` is told when the connection broke and it is tried again. Throws Refused.
 */
export async function* generate({ kind, prompt, maxTokens, temperature, model, signal, onPause }) {
  const path = kind === "chat" ? "v1/chat/completions" : "v1/completions";
  const input = kind === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const body = JSON.stringify({ model, ...input, max_tokens: maxTokens, temperature, stream: true });
  const key = `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
  let last = "";
  let brokenAt = null;
  for (;;) {
    try {
      for await (const event of events(path, body, key, last, signal)) {
        brokenAt = null;
        if (event === null) return;
        last = event.id;
        yield event;
      }
      throw new TypeError("the stream ended early");
    } catch (error) {
      if (signal.aborted || (error instanceof Refused && !error.retryable)) throw error;
      brokenAt ??= performance.now();
      if (performance.now() - brokenAt > PATIENCE_MS) throw error;
      onPause(error.message);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  }
}

/** The events of one connection; null at the regular end. */
async function* events(path, body, key, last, signal) {
  const headers = { "content-type": "application/json", "idempotency-key": key, ...authorization("inference") };
  if (last) headers["last-event-id"] = last;
  const response = await fetch(path, { method: "POST", headers, body, signal, cache: "no-store", credentials: "omit" });
  if (!response.ok) throw await refusal(response);
  for await (const event of readEvents(response)) {
    if (event.event === "error") {
      const { error } = JSON.parse(event.data);
      throw new Refused(error.message, 0, error.code === "unavailable" && last !== "");
    }
    if (event.data === "[DONE]") {
      yield null;
      return;
    }
    if (!event.data) continue;
    const [choice] = JSON.parse(event.data).choices;
    const text = choice?.text ?? choice?.delta?.content ?? "";
    const tokens = Number(event.id.split(",")[0]);
    yield { id: event.id, text, tokens, finish: choice?.finish_reason ?? null, seed: response.headers.get("x-ryzanstein-seed") };
  }
}

async function refusal(response) {
  let message = `HTTP ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not one of ours (a proxy's page): the status has to do
  }
  return new Refused(message, response.status, response.status === 503);
}

// Server-sent events over fetch: unlike EventSource it can send an API key, and says why it was refused.

/**
 * Yields {event, data, id} for each event of a response's body until it ends. Comments yield {comment: true}, as a
 * sign of life.
 */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be broken already
  }
}

function parse(block) {
  const found = { event: "message", data: "", id: "", comment: false };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") found.data += found.data ? `\n${value}` : value;
    else if (name === "event") found.event = value;
    else if (name === "id") found.id = value;
    else if (name === "") found.comment = true;
  }
  return found;
}

/** Nothing for so long: the connection is dead, whatever the browser thinks of it. */
const SILENCE_MS = 3000;
const LONGEST_PAUSE_MS = 4000;

/**
 * Follows a stream for as long as the page is open, and comes back after every loss.
 *
 * `onEvent(event)`; `onState(state, detail)`: "open", "lost", or "locked" (an API key is needed; `unlock()` goes on).
 */
export class Follower {
  #url;
  #headers;
  #onEvent;
  #onState;
  #unlock = null;
  #hurry = null;

  constructor(url, { headers, onEvent, onState }) {
    this.#url = url;
    this.#headers = headers;
    this.#onEvent = onEvent;
    this.#onState = onState;
  }

  async run() {
    let pause = 250;
    for (;;) {
      const outcome = await this.#once();
      if (outcome === "locked") {
        await new Promise((resolve) => (this.#unlock = resolve));
        continue;
      }
      pause = outcome === "served" ? 250 : Math.min(pause * 2, LONGEST_PAUSE_MS);
      await this.#wait(pause);
    }
  }

  /** There is a key now. */
  unlock() {
    this.#unlock?.();
    this.#unlock = null;
  }

  /** Somebody looks: tries again at once. */
  hurry() {
    this.#hurry?.();
  }

  async #once() {
    const stop = new AbortController();
    let watchdog = setTimeout(() => stop.abort(), SILENCE_MS);
    let served = false;
    try {
      const response = await fetch(this.#url, {
        headers: { accept: "text/event-stream", ...this.#headers() },
        cache: "no-store",
        credentials: "omit", // or the browser would ask for a password by itself
        signal: stop.signal,
      });
      if (response.status === 401 || response.status === 403) {
        this.#onState("locked", response.status);
        return "locked";
      }
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      for await (const event of readEvents(response)) {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => stop.abort(), SILENCE_MS);
        if (!served) this.#onState("open");
        served = true;
        if (event.data) this.#onEvent(event);
      }
      this.#onState("lost", "it has closed the connection");
    } catch (error) {
      this.#onState("lost", stop.signal.aborted ? "nothing came for 3 s" : String(error.message ?? error));
    } finally {
      clearTimeout(watchdog);
      stop.abort();
    }
    return served ? "served" : "failed";
  }

  async #wait(milliseconds) {
    // A little of chance, so that a hundred pages don't come back in the same moment.
    const pause = milliseconds * (0.75 + Math.random() / 2);
    await new Promise((resolve) => {
      this.#hurry = resolve;
      setTimeout(resolve, pause);
    });
    this.#hurry = null;
  }
}

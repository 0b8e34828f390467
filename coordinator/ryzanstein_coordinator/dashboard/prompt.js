// The box to try a prompt.

import { say, set } from "./dom.js";
import { duration, plural, rate } from "./format.js";
import { Refused, generate } from "./generation.js";
import { forget, remember } from "./keys.js";

const ENDPOINTS = { chat: "/v1/chat/completions", text: "/v1/completions" };
/** A pause between two tokens that is worth a word. */
const PAUSE_S = 0.5;

/** Wires the form. `modelName()` gives the model that is served. */
export function wirePrompt(page, modelName) {
  let running = null;
  const kind = () => new FormData(page.form).get("kind");

  page.form.addEventListener("change", () => say(page.endpoint, ENDPOINTS[kind()]));
  page.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      page.form.requestSubmit();
    }
  });
  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running !== null) {
      running.abort();
      return;
    }
    if (page.key.value) remember("inference", page.key.value);
    running = new AbortController();
    say(page.send, "Stop");
    ask(page, kind(), modelName(), running.signal).finally(() => {
      running = null;
      say(page.send, "Send");
    });
  });
}

async function ask(page, kind, model, signal) {
  const began = performance.now();
  const seen = { first: null, last: null, tokens: 0, longest: 0, seed: null, finish: null };
  page.answer.textContent = "";
  set(page.answer, "hidden", null);
  set(page.answer, "data-busy", "");
  say(page.measured, "");
  set(page.measured, "data-look", null);
  try {
    const parts = generate({
      kind,
      prompt: page.prompt.value,
      maxTokens: Number(page.maxTokens.value) || 200,
      temperature: Number(page.temperature.value),
      model,
      signal,
      onPause: (why) => say(page.measured, `The connection broke (${why}); going on as soon as it is back.`),
    });
    for await (const part of parts) {
      const now = performance.now();
      if (seen.first === null) seen.first = now;
      else seen.longest = Math.max(seen.longest, (now - seen.last) / 1000);
      seen.last = now;
      seen.tokens = part.tokens;
      seen.seed = part.seed;
      seen.finish = part.finish ?? seen.finish;
      page.answer.append(part.text);
      page.answer.scrollTop = page.answer.scrollHeight;
    }
    set(page.keyRow, "hidden", "");
    say(page.measured, measured(seen, began));
  } catch (error) {
    set(page.measured, "data-look", signal.aborted ? null : "bad");
    say(page.measured, signal.aborted ? `Stopped. ${measured(seen, began)}` : explain(page, error));
    if (seen.first === null) set(page.answer, "hidden", "");
  } finally {
    set(page.answer, "data-busy", null);
  }
}

function explain(page, error) {
  if (!(error instanceof Refused)) return `It failed: ${error.message}.`;
  if (error.status === 401 || error.status === 403) {
    forget("inference");
    set(page.keyRow, "hidden", null);
    page.key.value = "";
    page.key.focus();
    return `${error.message}. The key stays in this tab.`;
  }
  return error.message;
}

function measured(seen, began) {
  if (seen.first === null) return "No token came.";
  const parts = [plural(seen.tokens, "token"), `first after ${duration((seen.first - began) / 1000)}`];
  const took = (seen.last - seen.first) / 1000;
  if (seen.tokens > 1 && took > 0) parts.push(`${rate((seen.tokens - 1) / took)} tokens/s`);
  if (seen.longest > PAUSE_S) parts.push(`longest pause ${duration(seen.longest)}`);
  if (seen.finish === "length") parts.push("cut at the number of tokens");
  if (seen.seed) parts.push(`seed ${seen.seed}`);
  return parts.join(", ");
}

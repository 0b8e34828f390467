// API keys: in this tab only (sessionStorage), and sent to this coordinator only.

const PREFIX = "ryzanstein.key.";

/** The key for "operations" or "inference"; one that was given for the other may well do for both. */
export function keyFor(role) {
  const other = role === "operations" ? "inference" : "operations";
  return read(role) || read(other);
}

export function remember(role, key) {
  try {
    sessionStorage.setItem(PREFIX + role, key);
  } catch {
    kept.set(role, key); // no storage in this browser: for as long as the page is open
  }
}

export function forget(role) {
  kept.delete(role);
  try {
    sessionStorage.removeItem(PREFIX + role);
  } catch {
    // there is no storage: nothing was kept there
  }
}

/** Headers of a call in that role. */
export function authorization(role) {
  const key = keyFor(role);
  return key ? { authorization: `Bearer ${key}` } : {};
}

const kept = new Map();

function read(role) {
  try {
    return sessionStorage.getItem(PREFIX + role) ?? kept.get(role) ?? "";
  } catch {
    return kept.get(role) ?? "";
  }
}

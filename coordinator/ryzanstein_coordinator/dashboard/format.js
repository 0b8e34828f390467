// Numbers and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const whole = new Intl.NumberFormat("en");

/** `1.5 GiB`. */
export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** `12,345`. */
export function count(number) {
  return whole.format(Math.round(number));
}

/** A duration in three digits at most: `0.4 ms`, `38 ms`, `1.25 s`, `42 s`, `3 min`. */
export function duration(seconds) {
  const [value, unit] = durationParts(seconds);
  return `${value} ${unit}`;
}

/** Value and unit apart. */
export function durationParts(seconds) {
  if (seconds < 0.01) return [(seconds * 1000).toFixed(1), "ms"];
  if (seconds < 0.9995) return [(seconds * 1000).toFixed(0), "ms"];
  if (seconds < 9.995) return [seconds.toFixed(2), "s"];
  if (seconds < 99.5) return [seconds.toFixed(0), "s"];
  if (seconds < 5400) return [(seconds / 60).toFixed(0), "min"];
  if (seconds < 129600) return [(seconds / 3600).toFixed(0), "h"];
  return [(seconds / 86400).toFixed(0), "days"];
}

/** `12 s ago`, `just now`. */
export function ago(seconds) {
  if (seconds < 1.5) return "just now";
  return seconds < 99.5 ? `${Math.round(seconds)} s ago` : `${duration(seconds)} ago`;
}

/** A rate: one decimal while it is small. */
export function rate(perSecond) {
  if (perSecond === 0) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : count(perSecond);
}

/** `42 %`. */
export function percent(ratio) {
  const value = ratio * 100;
  return `${value >= 0.05 && value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** A moment on the reader's own clock. */
export function moment(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleString();
}

/** `8.0 B`, `13 M`: how many parameters a model has. */
export function parameters(number) {
  if (number >= 1e9) return `${(number / 1e9).toFixed(number < 1e10 ? 1 : 0)} B`;
  return `${(number / 1e6).toFixed(number < 1e7 ? 1 : 0)} M`;
}

/** `1 stream`, `4 streams`. */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Money and time as TypeScript has them: decimal strings of US dollars, and `Date`s. No float touches an amount. */

/** What is accepted as dollars. A number stands for its shortest decimal form, so `0.1` is ten cents. */
export type Money = string | number | bigint;

/** Micro-USD as dollars with two decimals, or as many as the amount needs: `"50.00"`, `"0.0079"`. */
export function usdFromMicros(micros: number | bigint): string {
  const whole = BigInt(micros);
  const size = whole < 0n ? -whole : whole;
  const digits = size.toString().padStart(7, "0");
  const fraction = digits.slice(-6).replace(/0+$/, "").padEnd(2, "0");
  return `${whole < 0n ? "-" : ""}${digits.slice(0, -6)}.${fraction}`;
}

/** Dollars as micro-USD; the text must be a plain decimal with at most six decimals. */
export function microsFromUsd(usd: string): bigint {
  const found = /^(-?)(\d+)(?:\.(\d{1,6}))?$/.exec(usd);
  if (!found) throw new RangeError(`${JSON.stringify(usd)} is no amount in US dollars with at most six decimals`);
  const [, sign, whole, fraction = ""] = found as unknown as [string, string, string, string | undefined];
  const micros = BigInt(whole + fraction.padEnd(6, "0"));
  return sign ? -micros : micros;
}

/** A document as JSON can carry it: fractions as decimal text, dates as RFC 3339, sets as lists. */
export function plain(value: unknown, place = "policy"): unknown {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new RangeError(`${place}: ${value} is no number to limit by`);
    return Number.isInteger(value) ? value : String(value);
  }
  if (value instanceof Date) return value.toISOString();
  if (value instanceof Set) return [...value].map((item, index) => plain(item, `${place}[${index}]`));
  if (Array.isArray(value)) return value.map((item, index) => plain(item, `${place}[${index}]`));
  if (typeof value === "object") {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    return Object.fromEntries(entries.map(([name, item]) => [name, plain(item, `${place}.${name}`)]));
  }
  throw new TypeError(`${place}: a policy holds text, numbers, lists and objects, not a ${typeof value}`);
}

/** Money and time as TypeScript has them: decimal strings of US dollars, and `Date`s. No float touches an amount. */

import { types } from "node:util";

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

/**
 * A document as JSON can carry it: fractions as decimal text, dates as RFC 3339, sets as lists. What JSON would drop or
 * not see (a field without a value, a `Map`, what an object inherits) is refused: it could be a limit.
 */
export function plain(value: unknown, place = "policy"): unknown {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new RangeError(`${place}: ${value} is no number to limit by`);
    return Number.isInteger(value) ? value : String(value);
  }
  if (value === undefined) throw new TypeError(`${place} is undefined; give a value, or leave the field out`);
  if (typeof value !== "object") throw new TypeError(`${place}: ${HOLDS}, not a ${typeof value}`);
  // Not `instanceof`: jest runs code in a realm of its own.
  if (types.isDate(value)) return dateText(value, place);
  const list = types.isSet(value) ? [...value] : Array.isArray(value) ? Array.from(value) : null;
  if (list) return list.map((item, index) => plain(item, `${place}[${index}]`));
  if (!isPlain(value)) throw new TypeError(`${place}: ${HOLDS} (\`{ ... }\`), not ${kindOf(value)}`);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item, `${place}.${name}`)]));
}

const HOLDS = "a policy holds text, numbers, lists and plain objects";

function dateText(date: Date, place: string): string {
  if (Number.isNaN(date.getTime())) throw new RangeError(`${place} is an invalid Date`);
  return date.toISOString();
}

/** Whether all that an object says is its own: of any realm, its prototype is that of `{}`, or none. */
export function isPlain(value: object): boolean {
  const above = Object.getPrototypeOf(value) as object | null;
  return above === null || (Object.getPrototypeOf(above) === null && Object.hasOwn(above, "isPrototypeOf"));
}

/** What an object that is not plain is, for an error. */
export function kindOf(value: object): string {
  const name: unknown = value.constructor?.name;
  if (typeof name !== "string" || name === "Object") return "an object that inherits from another";
  return `${/^[AEIOU]/.test(name) ? "an" : "a"} ${name}`;
}

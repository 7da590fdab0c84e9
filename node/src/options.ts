/** Options as users give them. What is misspelt or missing is refused by name, so that no limit is lost to it. */

import { types } from "node:util";
import { ConfigError } from "./errors.js";
import { isPlain, kindOf } from "./money.js";

/** Refuses what is no plain object: of a `Map`, or of what an object inherits, nothing would be seen. */
export function refuseOdd(given: object, what: string): void {
  if (typeof given === "object" && given !== null && isPlain(given)) return;
  throw new ConfigError(`${what}: give a plain object (\`{ ... }\`), not ${shown(given)}`);
}

/** The same, and refuses names that are not known, with the nearest one that is. */
export function refuseUnknown(given: object, known: readonly string[], what: string): void {
  refuseOdd(given, what);
  for (const name of Object.keys(given)) {
    if (known.includes(name)) continue;
    const near = nearest(name, known);
    const hint = near ? `did you mean ${near}?` : `it takes ${known.join(", ")}`;
    throw new ConfigError(`${what} has no option ${JSON.stringify(name)}: ${hint}`);
  }
}

/** Refuses a field that is there without a value: a limit that was to come from elsewhere, and did not. */
export function refuseUndefined(given: object, what: string): void {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined)
      throw new ConfigError(`${what}: ${name} is undefined; give a value, or leave the field out`);
  }
}

/** The field as text, if it is there. */
export function textOf<F extends object>(
  given: F,
  name: keyof F & string,
  what: string,
  such = "run_42",
): string | null {
  const value: unknown = given[name];
  if (value === undefined) return null;
  if (typeof value === "string" && value !== "") return value;
  throw new ConfigError(`${what}: ${name} is a text such as ${JSON.stringify(such)}, not ${shown(value)}`);
}

/** The field as a whole number, if it is given. */
export function wholeOf(value: unknown, place: string, least: number, most: number): number | null {
  if (value === undefined) return null;
  if (typeof value === "number" && Number.isInteger(value) && value >= least && value <= most) return value;
  throw new ConfigError(`${place} is a whole number from ${least} to ${most}, not ${shown(value)}`);
}

/** The field as true or false; false if it is not given. */
export function flagOf(value: unknown, place: string): boolean {
  if (value === undefined || typeof value === "boolean") return value ?? false;
  throw new ConfigError(`${place} is true or false, not ${shown(value)}`);
}

/** How long a call may wait, in milliseconds: 0 if it is not given. */
export function waitOf(value: unknown): number {
  return wholeOf(value, "waitMs", 0, LONGEST_WAIT) ?? 0;
}

/** A day, in milliseconds. */
const LONGEST_WAIT = 86_400_000;

/** A value that was given, for an error. */
export function shown(value: unknown): string {
  if (typeof value === "string") return value === "" ? "an empty text" : JSON.stringify(value);
  if (typeof value !== "object" || value === null) return String(value);
  return types.isDate(value) ? String(value) : kindOf(value);
}

/** The run, which is also called `agent_run_id`, as in the audit. */
export function runOf(given: { run?: string; agent_run_id?: string }, what: string): string | null {
  const [run, alias] = [textOf(given, "run", what), textOf(given, "agent_run_id", what)];
  if (run !== null && alias !== null && run !== alias)
    throw new ConfigError(`${what}: run and agent_run_id are two names of one thing; give one`);
  return run ?? alias;
}

function nearest(name: string, known: readonly string[]): string | null {
  const distances = known.map((other) => ({ other, far: distance(name.toLowerCase(), other.toLowerCase()) }));
  const [best] = distances.sort((a, b) => a.far - b.far);
  return best && best.far <= Math.max(2, Math.floor(name.length / 3)) ? best.other : null;
}

/** How many letters have to be added, left out or changed. */
function distance(from: string, to: string): number {
  let above = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (const [row, letter] of [...from].entries()) {
    const line = [row + 1];
    for (const [column, other] of [...to].entries()) {
      const [left = 0, over = 0, across = 0] = [line[column], above[column + 1], above[column]];
      line.push(Math.min(left + 1, over + 1, across + (letter === other ? 0 : 1)));
    }
    above = line;
  }
  return above.at(-1) ?? 0;
}

/** Idempotency keys for callers who make their own. The same in every language. */

import { translated } from "./errors.js";
import native from "./native.cjs";

/** A key for a named step of a run: SHA-256 over both, 48 hex digits. A run id may not contain `::`. */
export function stepKey(run: string, step: string): string {
  return translated(() => native.stepKey(run, step));
}

/** A key for what is done: SHA-256 over the chosen fields by name, 32 hex digits. The order does not matter. */
export function contentKey(fields: Readonly<Record<string, unknown>>): string {
  return translated(() => native.contentKey(JSON.stringify(fields)));
}

/** A key for an item of a run, readable: `run-item`. */
export function itemKey(run: string, item: string | number): string {
  return translated(() => native.itemKey(run, String(item)));
}

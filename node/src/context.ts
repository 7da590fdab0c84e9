/**
 * Which run and step the code that runs now belongs to. Attribution only: permission travels with the token.
 *
 * Kept across `await`, timers and `TransformStream`; lost in `ReadableStream.pull` and in event emitters that were
 * attached elsewhere: use `carry` there. Losing it loses a name in the audit, never the cap.
 */

import { AsyncLocalStorage } from "node:async_hooks";
import { NoRun } from "./errors.js";
import type { Run } from "./run.js";

/** What is current. */
export interface Here {
  readonly run: Run | null;
  readonly step: string | null;
  readonly item: string | null;
  readonly context: Readonly<Record<string, unknown>>;
}

export const NOWHERE: Here = Object.freeze({ run: null, step: null, item: null, context: Object.freeze({}) });

// One store for the ESM and the CommonJS build, and for a module that a hot reload has loaded again.
const KEY = Symbol.for("keybrake.here");
const shared = globalThis as { [KEY]?: AsyncLocalStorage<Here> };
shared[KEY] ??= new AsyncLocalStorage<Here>();
const storage = shared[KEY];

/** What is current here. */
export function here(): Here {
  return storage.getStore() ?? NOWHERE;
}

/** Runs a function in which something is current. */
export function within<T>(current: Here, work: () => T): T {
  return storage.run(current, work);
}

/** The function, running in what was current when it was wrapped. */
export function carried<A extends unknown[], T>(current: Here, work: (...args: A) => T): (...args: A) => T {
  return (...args) => storage.run(current, work, ...args);
}

/** The run that is open here. */
export function currentRun(): Run {
  const { run } = here();
  if (!run) throw new NoRun("no run is open here: use `run(...)`, or `run.carry` where the context is lost");
  return run;
}

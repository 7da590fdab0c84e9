/**
 * Spending limits for the API keys that agents hold, enforced before a call leaves the process.
 *
 *     await using run = await open({ policy });
 *     const stripe = createStripe(run);              // from keybrake/stripe: a real Stripe
 *     await stripe.refunds.create({ charge: "ch_1" });
 *     console.log(await run.spent(), "of", await run.cap());
 */

import { Keybrake, type OpenOptions } from "./keybrake.js";
import native from "./native.cjs";
import type { Run } from "./run.js";

export type { Authorization, AuthorizeOptions, Permit, Replied } from "./authorize.js";
export { currentRun } from "./context.js";
export {
  ConfigError,
  type Denial,
  Denied,
  denied,
  KeybrakeError,
  LedgerError,
  NoRun,
  NotFound,
  PolicyError,
  VendorError,
} from "./errors.js";
export type { Hook, HookEvents, HookName } from "./hooks.js";
export {
  Agent,
  type BudgetDesk,
  Keybrake,
  type KeybrakeOptions,
  type OpenOptions,
} from "./keybrake.js";
export { contentKey, itemKey, stepKey } from "./keys.js";
export type { Money } from "./money.js";
export type { AuditFilter, PolicyLike, Scope, Ties } from "./requests.js";
export { Key, Run, type StepOptions } from "./run.js";
export { Secret } from "./secret.js";
export type * from "./types.js";

/** The version of the package. */
export const version: string = native.version();

// One for the ESM and the CommonJS build, and for a module that a hot reload has loaded again.
const KEY = Symbol.for("keybrake.default");
const shared = globalThis as { [KEY]?: Keybrake };

/** The `Keybrake` that the functions of this module use: made from the environment on first use. */
export function defaultKeybrake(): Keybrake {
  if (!shared[KEY] || shared[KEY].engine.closed) shared[KEY] = new Keybrake();
  return shared[KEY];
}

/** `Keybrake.open` of the default Keybrake: a run that you close (`await using`). */
export function open(options: OpenOptions = {}): Promise<Run> {
  return defaultKeybrake().open(options);
}

/** `Keybrake.run` of the default Keybrake: opens a run, makes it current while `work` runs, and closes it. */
export function run<T>(options: OpenOptions, work: (run: Run) => T | Promise<T>): Promise<T> {
  return defaultKeybrake().run(options, work);
}

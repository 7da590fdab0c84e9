/** What can go wrong, and the refusal: an ordinary answer that code meets as an error. */

import { types } from "node:util";
import { usdFromMicros } from "./money.js";
import native from "./native.cjs";
import { type Budget, type BudgetView, budgetFrom, type Code, type ExistingCall, type StopInfo } from "./types.js";

const BRAND = Symbol.for("keybrake.error");

/**
 * Gives a class of errors its name, and has `instanceof` go by a brand, so that it also holds between the ESM and the
 * CommonJS build, and across bundles. A class that somebody derives from it is an ordinary class.
 */
function branded(kind: { prototype: KeybrakeError }, name: string): void {
  const above = (kind.prototype as unknown as { [BRAND]?: readonly string[] })[BRAND] ?? [];
  const hasInstance = function (this: unknown, thing: unknown): boolean {
    if (this !== kind) return Function.prototype[Symbol.hasInstance].call(this as () => void, thing);
    const kinds = typeof thing === "object" && thing !== null ? field(thing, BRAND) : null;
    return Array.isArray(kinds) && kinds.includes(name);
  };
  Object.defineProperty(kind, Symbol.hasInstance, { value: hasInstance });
  Object.defineProperty(kind.prototype, BRAND, { value: [name, ...above] });
  Object.defineProperty(kind.prototype, "name", { value: name, configurable: true, writable: true });
}

/** Everything that Keybrake itself throws. The message says what was wrong, where, and what to do. */
export class KeybrakeError extends Error {
  static {
    branded(KeybrakeError, "KeybrakeError");
  }
}

/** A policy or a budget is wrong; the message names the field, the place and the nearest valid name. */
export class PolicyError extends KeybrakeError {
  static {
    branded(PolicyError, "PolicyError");
  }
}

/** A setting is missing or wrong: ledger URL, secret, base URL, file permissions. */
export class ConfigError extends KeybrakeError {
  static {
    branded(ConfigError, "ConfigError");
  }
}

/** The ledger cannot be reached or read. Nothing was sent. */
export class LedgerError extends KeybrakeError {
  static {
    branded(LedgerError, "LedgerError");
  }
}

/** Something needs a run, and no run is open here. */
export class NoRun extends KeybrakeError {
  static {
    branded(NoRun, "NoRun");
  }
}

/** No such key, run, call or budget. */
export class NotFound extends KeybrakeError {
  static {
    branded(NotFound, "NotFound");
  }
}

/** The vendor could not be reached, or its answer could not be read. */
export class VendorError extends KeybrakeError {
  static {
    branded(VendorError, "VendorError");
  }
}

/** A refusal as the engine writes it: amounts in micro-USD, times in Unix milliseconds. */
export interface Denial {
  code: Code;
  message: string;
  call_id: string;
  vendor?: string;
  operation?: string;
  requested_micros?: number;
  budget?: BudgetView;
  stop?: { scope: string; reason: string; since_ms: number; by: string };
  existing?: { call_id: string; object?: string; amount_micros: number; at_ms: number; differing?: string[] };
  retryable?: boolean;
  aborted?: boolean;
}

/**
 * A refused call: what was refused, why, and what is left. `denied(x)` finds it in whatever an SDK made of it.
 */
export class Denied extends KeybrakeError {
  static {
    branded(Denied, "Denied");
  }

  /** Why, such as `cap_exceeded`. */
  readonly code: Code;
  /** The call, as in the audit. */
  readonly callId: string;
  readonly vendor: string | null;
  readonly operation: string | null;
  /** What the call asked for, in dollars. */
  readonly requestedUsd: string | null;
  /** The budget that is full, for `cap_exceeded` and `cap_held`. */
  readonly budget: Budget | null;
  /** The standing stop, for `stopped`. */
  readonly stop: StopInfo | null;
  /** The earlier call, for `outcome_unknown`, `already_done` and `idempotency_conflict`. */
  readonly existing: ExistingCall | null;
  /** Whether waiting may help (`cap_held` only). */
  readonly retryable: boolean;
  /** Whether the call was in flight when a hard stop aborted it (`stopped` only): it may have taken effect. */
  readonly aborted: boolean;
  /** The HTTP status that the SDK is shown. */
  readonly status: number;
  readonly #denial: Denial;

  constructor(denial: Denial, status = 403) {
    super(denial.message);
    const { budget, stop, existing, requested_micros: requested } = denial;
    this.#denial = denial;
    this.code = denial.code;
    this.callId = denial.call_id ?? "";
    this.vendor = denial.vendor ?? null;
    this.operation = denial.operation ?? null;
    this.requestedUsd = requested == null ? null : usdFromMicros(requested);
    this.budget = budget ? budgetFrom(budget) : null;
    this.stop = stop ? { scope: stop.scope, reason: stop.reason, since: new Date(stop.since_ms), by: stop.by } : null;
    this.existing = existing ? existingFrom(existing) : null;
    this.retryable = denial.retryable ?? false;
    this.aborted = denial.aborted ?? false;
    this.status = status;
  }

  /** The cap of the full budget in dollars; `null` when no money budget is. */
  get capUsd(): string | null {
    return this.#money("cap");
  }
  /** What is settled in the full budget. */
  get usedUsd(): string | null {
    return this.#money("used");
  }
  /** What is reserved and not yet proven in the full budget. */
  get heldUsd(): string | null {
    return this.#money("held");
  }
  /** What is left of the full budget. */
  get remainingUsd(): string | null {
    return this.#money("remaining");
  }
  /** When the full budget's window ends; `null` when it has no end. */
  get resetsAt(): Date | null {
    return this.budget?.resetsAt ?? null;
  }

  /** The refusal in words for a language model: what was not done, that it is final, and what to do instead. */
  forModel(): string {
    return translated(() => native.forModel(JSON.stringify(this.#denial)));
  }

  /** The refusal as plain data: amounts in micro-USD, times in Unix milliseconds. */
  toJSON(): Denial {
    return structuredClone(this.#denial);
  }

  override toString(): string {
    return `${this.name}: ${this.code}: ${this.message}`;
  }

  #money(which: "cap" | "used" | "held" | "remaining"): string | null {
    return this.budget?.unit === "usd" ? this.budget[which] : null;
  }
}

function existingFrom(view: NonNullable<Denial["existing"]>): ExistingCall {
  return {
    callId: view.call_id,
    object: view.object ?? null,
    amountUsd: usdFromMicros(view.amount_micros),
    at: new Date(view.at_ms),
    differing: view.differing ?? [],
  };
}

/**
 * The refusal in an error or a result, or `null`. The way to recognise a refusal, whatever carries it: the error
 * itself, its `cause`, an `AggregateError`, the vendor-shaped error that an SDK made of it, a `{ error }` result
 * (Resend never throws), or a parsed body. Never throws. A body is taken at its word: ask it of what an SDK threw or
 * answered, not of data that somebody else wrote.
 */
export function denied(thing: unknown): Denied | null {
  const seen = new Set<unknown>();
  const queue: unknown[] = [thing];
  for (let item = queue.shift(); seen.size < MOST_PLACES; item = queue.shift()) {
    if (typeof item === "object" && item !== null && !seen.has(item)) {
      seen.add(item);
      if (item instanceof Denied) return item;
      const found = inBody(item);
      if (found) return found;
      queue.push(...inside(item));
    }
    if (queue.length === 0) return null;
  }
  return null;
}

/**
 * The refusal in what a tool returned, or `null`. A tool's result is data, and anybody may have written it; so it has
 * to be an error that was made in this process: `{ error }` with an `Error`, or with what Resend's adapter answers.
 */
export function deniedResult(result: unknown): Denied | null {
  const error = typeof result === "object" && result !== null ? field(result, "error") : null;
  if (typeof error !== "object" || error === null) return null;
  const made = types.isNativeError(error) || field(error, OURS) instanceof Denied;
  return made ? denied(error) : null;
}

/** How many objects are looked into. */
const MOST_PLACES = 100;
/** Where our own answers that are no errors keep the refusal. */
const OURS = "keybrakeDenied";
/** Where SDKs and frameworks keep what they were given: Stripe in `raw`, Twilio in `details`, Resend in `error`. */
const PLACES = ["cause", "error", "raw", "details", "body", "reason", "suppressed", OURS] as const;

function inside(item: object): unknown[] {
  const errors = field(item, "errors");
  const several = Array.isArray(errors) ? errors.slice(0, MOST_PLACES) : [];
  return [...PLACES.map((place) => field(item, place)), ...several];
}

/** A field of what somebody else made; a getter or a proxy that fails has none. */
function field(item: object, name: string | symbol): unknown {
  try {
    return (item as Record<string | symbol, unknown>)[name];
  } catch {
    return undefined;
  }
}

function inBody(item: object): Denied | null {
  const carried = field(item, "keybrake");
  if (typeof carried !== "object" || carried === null) return null;
  const shown = [field(item, "statusCode"), field(item, "status")].find((value) => typeof value === "number");
  try {
    const text = JSON.stringify(carried);
    // What the engine cannot read is none of its refusals.
    native.forModel(text);
    return new Denied(JSON.parse(text) as Denial, (shown as number | undefined) ?? 403);
  } catch {
    return null;
  }
}

const KINDS: Readonly<Record<string, new (message: string, options?: ErrorOptions) => KeybrakeError>> = {
  config: ConfigError,
  policy: PolicyError,
  ledger_unavailable: LedgerError,
  ledger_recovering: LedgerError,
  ledger_corrupt: LedgerError,
  not_found: NotFound,
  vendor: VendorError,
  internal: KeybrakeError,
};

/** A failure of the native module (`kind: text`) as the class that fits. */
export function fromNative(error: unknown): unknown {
  // Not `instanceof Error`: the native module's errors are of the main realm, and jest runs code in another.
  if (!types.isNativeError(error) || error instanceof KeybrakeError) return error;
  const found = /^([a-z_]+): ([\s\S]*)$/.exec(error.message);
  const [, name = "", text = ""] = found ?? [];
  if (name === "denied") return new Denied(JSON.parse(text) as Denial);
  const kind = KINDS[name];
  return kind ? new kind(text) : error;
}

/** Runs it; a failure of the native module becomes the class that fits. */
export function translated<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw fromNative(error);
  }
}

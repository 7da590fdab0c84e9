/** What can go wrong, and the refusal: an ordinary answer that code meets as an error. */

import { types } from "node:util";
import { usdFromMicros } from "./money.js";
import native from "./native.cjs";
import { type Budget, type BudgetView, budgetFrom, type Code, type ExistingCall, type StopInfo } from "./types.js";

const BRAND = Symbol.for("keybrake.error");

/** `instanceof` goes by brand, so that it also holds between the ESM and the CommonJS build, and across bundles. */
function branded(thing: unknown, kind: string): boolean {
  const kinds = (thing as { [BRAND]?: unknown } | null | undefined)?.[BRAND];
  return Array.isArray(kinds) && kinds.includes(kind);
}

/** Everything that Keybrake itself throws. The message says what was wrong, where, and what to do. */
export class KeybrakeError extends Error {
  override name = "KeybrakeError";
  /** @internal */
  get [BRAND](): readonly string[] {
    return ["KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "KeybrakeError");
  }
}

/** A policy or a budget is wrong; the message names the field, the place and the nearest valid name. */
export class PolicyError extends KeybrakeError {
  override name = "PolicyError";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["PolicyError", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "PolicyError");
  }
}

/** A setting is missing or wrong: ledger URL, secret, base URL, file permissions. */
export class ConfigError extends KeybrakeError {
  override name = "ConfigError";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["ConfigError", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "ConfigError");
  }
}

/** The ledger cannot be reached or read. Nothing was sent. */
export class LedgerError extends KeybrakeError {
  override name = "LedgerError";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["LedgerError", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "LedgerError");
  }
}

/** Something needs a run, and no run is open here. */
export class NoRun extends KeybrakeError {
  override name = "NoRun";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["NoRun", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "NoRun");
  }
}

/** No such key, run, call or budget. */
export class NotFound extends KeybrakeError {
  override name = "NotFound";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["NotFound", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "NotFound");
  }
}

/** The vendor could not be reached, or its answer could not be read. */
export class VendorError extends KeybrakeError {
  override name = "VendorError";
  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["VendorError", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "VendorError");
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
  override name = "Denied";
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
    return native.forModel(JSON.stringify(this.#denial));
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

  /** @internal */
  override get [BRAND](): readonly string[] {
    return ["Denied", "KeybrakeError"];
  }
  static override [Symbol.hasInstance](thing: unknown): boolean {
    return branded(thing, "Denied");
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
 * (Resend never throws), or a parsed body.
 */
export function denied(thing: unknown): Denied | null {
  const seen = new Set<unknown>();
  const queue: unknown[] = [thing];
  for (let item = queue.shift(); seen.size < 100; item = queue.shift()) {
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

/** Where SDKs and frameworks keep what they were given: Stripe in `raw`, Twilio in `details`, Resend in `error`. */
const PLACES = ["cause", "error", "raw", "details", "body", "reason", "keybrakeDenied"] as const;

function inside(item: object): unknown[] {
  const fields = item as Record<string, unknown>;
  const errors = Array.isArray(fields.errors) ? fields.errors : [];
  return [...PLACES.map((place) => fields[place]), ...errors];
}

function inBody(item: object): Denied | null {
  const carried = (item as { keybrake?: unknown }).keybrake as Partial<Denial> | null | undefined;
  if (typeof carried !== "object" || carried === null) return null;
  if (typeof carried.code !== "string" || typeof carried.message !== "string") return null;
  const { statusCode, status } = item as { statusCode?: unknown; status?: unknown };
  const shown = [statusCode, status].find((value) => typeof value === "number") as number | undefined;
  return new Denied(carried as Denial, shown ?? 403);
}

const KINDS: Record<string, new (message: string, options?: ErrorOptions) => KeybrakeError> = {
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
  const kind = found?.[1] === undefined ? undefined : KINDS[found[1]];
  return kind ? new kind(found?.[2] ?? "") : error;
}

/** Runs it; a failure of the native module becomes the class that fits. */
export function translated<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw fromNative(error);
  }
}

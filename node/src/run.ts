/** A run: one task's execution, with the key it spends by. */

import { type Authorization, type AuthorizeOptions, authorize } from "./authorize.js";
import { carried, type Here, here, NOWHERE, within } from "./context.js";
import { keep } from "./inside.js";
import type { Keybrake } from "./keybrake.js";
import { microsFromUsd } from "./money.js";
import { refuseUnknown } from "./options.js";
import type { Budget, CallInfo, Check } from "./types.js";

/** A vault key as issued. The token is shown once, here; `inspect` and JSON never show it. */
export class Key {
  readonly id: string;
  readonly expiresAt: Date;
  /** The run it is bound to, if any. */
  readonly run: string | null;
  readonly #token: string;

  constructor(id: string, token: string, expiresAt: Date, run: string | null) {
    this.id = id;
    this.#token = token;
    this.expiresAt = expiresAt;
    this.run = run;
  }

  /** The token, to give to any SDK as its API key. */
  get token(): string {
    return this.#token;
  }
}

/** The token itself, from a key or a text. */
export function tokenOf(token: string | Key): string {
  return typeof token === "string" ? token : token.token;
}

/** What belongs to a step besides its name. */
export interface StepOptions {
  /** The one thing worked on: within it, the same call is the same spend for this thing. */
  item?: string;
  /** Goes to the audit's metadata. */
  context?: Readonly<Record<string, unknown>>;
}

/** An open run. `await using` closes it, or `close`. */
export class Run implements AsyncDisposable {
  readonly #keybrake: Keybrake;
  readonly #token: string;
  readonly #owned: boolean;
  readonly #calls: CallInfo[] = [];
  readonly #ending = new AbortController();
  #closed = false;
  #closing: Promise<void> | null = null;
  #expiry: NodeJS.Timeout | null = null;

  /** The run's id, if its key is bound to one. */
  readonly id: string | null;
  /** The key's public id. */
  readonly keyId: string;

  /** @internal `owned`: its key was issued for it, so that closing the run revokes it. */
  constructor(keybrake: Keybrake, opened: { id: string; token: string; run: string | null }, owned: boolean) {
    this.#keybrake = keybrake;
    keep(this, keybrake);
    this.keyId = opened.id;
    this.#token = opened.token;
    this.id = opened.run;
    this.#owned = owned;
  }

  /** The vault key, to give to any SDK as its API key. */
  get token(): string {
    return this.#token;
  }

  /**
   * Aborts when the run is closed, and when a call of it is refused because it was stopped or its key revoked: give it to
   * what should end then (`abortSignal: run.signal`). A stop is not looked for in between: it is met by the next call.
   */
  get signal(): AbortSignal {
    return this.#ending.signal;
  }

  /** Whether it was closed: its calls are then refused as `key_expired`. */
  get closed(): boolean {
    return this.#closed;
  }

  /** The calls made through this handle so far, the newest thousand: verdict, cost, replayed, callId. */
  get calls(): readonly CallInfo[] {
    return this.#calls.slice(-CALLS);
  }

  /** Runs `work` as a named step: within it, the same call is the same spend. */
  step<T>(name: string, work: () => T, options: StepOptions = {}): T {
    refuseUnknown(options, ["item", "context"], "step");
    const around = this.#around();
    const { item = around.item, context = {} } = options;
    return within({ run: this, step: name, item, context: { ...around.context, ...context } }, work);
  }

  /** Runs `work` for one thing: within it, the same call is the same spend for this thing. */
  item<T>(item: string, work: () => T, context: Readonly<Record<string, unknown>> = {}): T {
    const around = this.#around();
    return within({ ...around, run: this, item, context: { ...around.context, ...context } }, work);
  }

  /** Runs `work` with this run current, so that clients which were made without it are attributed to it. */
  within<T>(work: () => T): T {
    return within(this.#around(), work);
  }

  /** The function, to be called where the context is lost, in this run and the present step. */
  carry<A extends unknown[], T>(work: (...args: A) => T): (...args: A) => T {
    return carried(this.#around(), work);
  }

  /** What would happen to a call such as `"POST /v1/refunds", { amount: 5000 }`. Nothing is reserved or sent. */
  async check(endpoint: string, fields: object = {}, vendor = "stripe"): Promise<Check> {
    return this.#keybrake.check(this.#token, endpoint, fields, vendor);
  }

  /**
   * Judges a call, given as to `fetch`, and reserves what it can cost; you send it by your own `fetch` and say how it
   * ended. The vault key goes where the secret went; a call without `Authorization` gets it.
   */
  authorize(input: string | URL | Request, init?: RequestInit, options: AuthorizeOptions = {}): Promise<Authorization> {
    return authorize({ keybrake: this.#keybrake, token: this.#token, run: this }, input, init, options);
  }

  /** The budgets that this run draws on, as they stand now. */
  async budgets(): Promise<Budget[]> {
    return this.#keybrake.usage(this.keyId);
  }

  /** Dollars settled in the tightest money budget (the one with least left); `null` when none limits the run. */
  async spent(): Promise<string | null> {
    return tightest(await this.budgets())?.used ?? null;
  }

  /** Dollars reserved and not yet proven in the tightest money budget; `null` when none limits the run. */
  async held(): Promise<string | null> {
    return tightest(await this.budgets())?.held ?? null;
  }

  /** The cap of the tightest money budget; `null` when none limits the run. */
  async cap(): Promise<string | null> {
    return tightest(await this.budgets())?.cap ?? null;
  }

  /** What is left of the tightest money budget; `null` when none limits the run. */
  async remaining(): Promise<string | null> {
    return tightest(await this.budgets())?.remaining ?? null;
  }

  /**
   * Ends it: a key made for it is revoked, later calls get `key_expired`, open holds stay. Safe to repeat; where the
   * ledger did not take the revocation, that tries again.
   */
  close(): Promise<void> {
    this.#closing ??= this.#end().catch((error: unknown) => {
      this.#closing = null;
      throw error;
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @internal Closes it after so long, whatever happens; does not keep the process alive. */
  closeAfter(ms: number): void {
    this.#expiry ??= setTimeout(() => void this.close().catch(() => {}), Math.min(ms, LONGEST)).unref();
  }

  /** @internal Notes a call; the adapters do it. */
  note(call: CallInfo): void {
    this.#calls.push(call);
    if (this.#calls.length >= 2 * CALLS) this.#calls.splice(0, CALLS);
    if (call.code === "stopped" || call.code === "key_revoked")
      this.#ending.abort(new Error(`the run was ended: ${call.code}`));
  }

  async #end(): Promise<void> {
    this.#closed = true;
    if (this.#expiry) clearTimeout(this.#expiry);
    this.#ending.abort(new Error("the run was closed"));
    if (this.#owned) await this.#keybrake.revoke(this.keyId, "run closed");
  }

  /** The present step of this run, or its beginning. */
  #around(): Here {
    const around = here();
    return around.run === this ? around : { ...NOWHERE, run: this };
  }
}

/** The longest a timer of Node waits, in milliseconds; a longer one would fire at once. */
const LONGEST = 2 ** 31 - 1;

/** How many calls a handle remembers. */
const CALLS = 1000;

/** The money budget with least left, if there is one. */
export function tightest(budgets: readonly Budget[]): Budget | null {
  const [first, ...others] = budgets.filter((budget) => budget.unit === "usd");
  if (!first) return null;
  const left = (budget: Budget) => microsFromUsd(budget.remaining);
  return others.reduce((least, budget) => (left(budget) < left(least) ? budget : least), first);
}

/** Closes it. A ledger that does not take the revocation undoes no work: the handle is closed and the key expires. */
export async function ended(run: Run): Promise<void> {
  await run.close().catch((error: unknown) => {
    process.emitWarning(`the key ${run.keyId} was not revoked and ends when it expires: ${String(error)}`, {
      type: "Keybrake",
    });
  });
}

/** The front door: a ledger, the vendors' secrets, and what is asked of them. */

import { type Authorization, type AuthorizeOptions, authorize } from "./authorize.js";
import { carried, here, within } from "./context.js";
import { Engine } from "./engine.js";
import { ConfigError } from "./errors.js";
import { type Hook, type HookName, Hooks } from "./hooks.js";
import { keep } from "./inside.js";
import { flagOf, refuseOdd, refuseUnknown, textOf } from "./options.js";
import type { AuditFilter, PolicyLike, Scope, Ties } from "./requests.js";
import * as requests from "./requests.js";
import { ended, Key, Run, tokenOf } from "./run.js";
import { Secret } from "./secret.js";
import type { AuditRow, Budget, BudgetEntry, Check, Hold, State, StopInfo, StopResult, Vendor } from "./types.js";

/** All of it optional. */
export interface KeybrakeOptions {
  /** A URL such as `sqlite:spend.db` or `redis://host?ns=prod`; else `KEYBRAKE_LEDGER`, else (on a workstation) a file. */
  ledger?: string;
  /** By vendor, or `vendor:name`; else the vendors' usual environment variables. */
  secrets?: Readonly<Record<string, Secret | string>>;
  /** By vendor; plain http is taken for loopback alone. */
  baseUrls?: Partial<Record<Vendor, string>>;
  /** Under vitest and jest, a vendor that is not on loopback is refused unless this is true. */
  allowLiveInTests?: boolean;
}

/** How a run is opened: of a token, or of a policy, for which a key is issued that closing revokes. */
export interface OpenOptions extends Ties {
  /** An existing vault key; `KEYBRAKE_TOKEN` when neither a token nor a policy is given. */
  token?: string | Key;
  policy?: PolicyLike;
  /** Accepts a policy whose every budget is scoped to the run, so that ten runs are ten caps. */
  allowRunCapsOnly?: boolean;
}

const OPTIONS = ["ledger", "secrets", "baseUrls", "allowLiveInTests"] as const;
const OPENING = ["token", "policy", "allowRunCapsOnly", ...requests.TIES] as const;

/** A ledger, the vendors' secrets, and the clients that the ledger governs. */
export class Keybrake implements AsyncDisposable {
  /** @internal */
  readonly engine: Engine;
  /** @internal */
  readonly hooks = new Hooks();
  /** @internal */
  readonly allowLiveInTests: boolean;
  /** @internal Whether a test runner runs this. Asked once: the environment costs more than the rest of a call's front. */
  readonly inTests = Boolean(process.env.VITEST || process.env.JEST_WORKER_ID);
  /** Budgets of groups, such as `tenant:acme`. Changing a cap works on the next call, for everyone. */
  readonly budgets: BudgetDesk;

  constructor(options: KeybrakeOptions = {}) {
    const what = "a Keybrake";
    refuseUnknown(options, OPTIONS, what);
    const { ledger, secrets = {}, baseUrls = {}, allowLiveInTests } = options;
    refuseOdd(secrets, "secrets");
    this.allowLiveInTests = flagOf(allowLiveInTests, `${what}: allowLiveInTests`);
    this.engine = new Engine({
      ledger: textOf({ ledger }, "ledger", what, "sqlite:spend.db"),
      secrets: Object.fromEntries(Object.entries(secrets).map(([name, it]) => [name, Secret.setting(it, name)])),
      base_urls: requests.baseUrlsArgument(baseUrls),
    });
    // Not before nothing can be refused any more: what is made again then finds its variables.
    for (const secret of Object.values(secrets)) Secret.taken(secret);
    this.budgets = new BudgetDesk(this.engine);
  }

  /** For an agent's own code: the same settings, without any way to issue, stop, revoke or change budgets. */
  static agent(options: KeybrakeOptions = {}): Agent {
    return new Agent(new Keybrake(options));
  }

  /** Opens the ledger now, so that a mistake in the settings shows now; without it, the first use does. */
  async ready(): Promise<this> {
    await this.engine.ready();
    return this;
  }

  /** Issues a vault key under a policy. The token is shown here only. */
  async issue(policy: PolicyLike, ties: Ties = {}): Promise<Key> {
    const args = { ...requests.policyArgument(policy), ...requests.tiesArgument(ties, "issue") };
    const got = await this.engine.ask<{ id: string; token: string; expires_at_ms: number; run: string | null }>(
      "issue",
      args,
    );
    return new Key(got.id, got.token, new Date(got.expires_at_ms), got.run);
  }

  /** A run that you close. */
  async open(options: OpenOptions = {}): Promise<Run> {
    const { args, owned } = opening(options);
    return new Run(this, await this.engine.ask("open", args), owned);
  }

  /** Opens a run, makes it current while `work` runs, and closes it. A revocation that fails then is a warning. */
  async run<T>(options: OpenOptions, work: (run: Run) => T | Promise<T>): Promise<T> {
    const run = await this.open(options);
    try {
      return await run.within(() => work(run));
    } finally {
      await ended(run);
    }
  }

  /** What would happen to a call such as `"POST /v1/refunds", { amount: 5000 }`. Nothing is reserved or sent. */
  async check(token: string | Key, endpoint: string, fields: object = {}, vendor = "stripe"): Promise<Check> {
    const args = requests.checkedCall(tokenOf(token), endpoint, fields, vendor);
    return requests.checkFrom(await this.engine.ask("check", args));
  }

  /** As `Run.authorize`, by a vault key. */
  authorize(
    token: string | Key,
    input: string | URL | Request,
    init?: RequestInit,
    options: AuthorizeOptions = {},
  ): Promise<Authorization> {
    return authorize({ keybrake: this, token: tokenOf(token), run: null }, input, init, options);
  }

  /** The budgets that a key draws on, as they stand. */
  async usage(keyId: string): Promise<Budget[]> {
    return requests.budgetsFrom(await this.engine.ask("usage", { key_id: requests.keyIdOf(keyId, "usage") }));
  }

  /** Rows of the audit. */
  async audit(filter: AuditFilter = {}): Promise<AuditRow[]> {
    const rows = await this.engine.ask<requests.AuditAnswer[]>("audit", requests.auditArgument(filter));
    return rows.map(requests.auditFrom);
  }

  /** Reservations that still hold something, oldest first. */
  async holds(filter: { run?: string; agent_run_id?: string; state?: State } = {}): Promise<Hold[]> {
    const found = await this.engine.ask<requests.HoldAnswer[]>("holds", requests.holdsArgument(filter));
    return found.map(requests.holdFrom);
  }

  /**
   * Refuses everything in a scope from the next call on, also keys issued later, until `resume`. `hard` also aborts
   * calls in flight, in every process: whether they took effect is unknown until they are reconciled.
   */
  async stop(options: Scope & { reason?: string; hard?: boolean }): Promise<StopResult> {
    refuseOdd(options, "stop");
    const { reason = "", hard, ...scope } = options;
    const args = {
      scope: requests.scopeArgument(scope, "stop"),
      reason: String(reason),
      by: requests.who(),
      hard: flagOf(hard, "stop: hard"),
    };
    return requests.stopResultFrom(await this.engine.ask("stop", args));
  }

  /** Ends a stop; answers whether there was one. */
  async resume(options: Scope & { reason?: string }): Promise<boolean> {
    refuseOdd(options, "resume");
    const { reason = "", ...scope } = options;
    const args = { scope: requests.scopeArgument(scope, "resume"), reason: String(reason), by: requests.who() };
    return this.engine.ask("resume", args);
  }

  /** All standing stops. */
  async stops(): Promise<StopInfo[]> {
    return (await this.engine.ask<requests.StopAnswer[]>("stops", {})).map(requests.stopFrom);
  }

  /** Ends a key for good, and with it its children; answers whether it was open before. */
  async revoke(keyId: string, reason = ""): Promise<boolean> {
    return this.engine.ask("revoke", {
      key_id: requests.keyIdOf(keyId, "revoke"),
      reason: String(reason),
      by: requests.who(),
    });
  }

  /** Calls `hook` on an event; answers how to take it off. A failing hook never fails a call. */
  on<K extends HookName>(event: K, hook: Hook<K>): () => void {
    return this.hooks.on(event, hook);
  }

  /** The function, to be called where the context is lost, in the present run and step. */
  carry<A extends unknown[], T>(work: (...args: A) => T): (...args: A) => T {
    return carried(here(), work);
  }

  /** Runs `work` with an existing run current. */
  within<T>(run: Run, work: () => T): T {
    return here().run === run ? work() : within({ run, step: null, item: null, context: {} }, work);
  }

  /** Waits until the ledger has written down what is still lazy. */
  async flush(): Promise<void> {
    await this.engine.ask("flush", {});
  }

  /** Flushes and ends the engine. Calls afterwards fail. Safe to repeat. */
  close(): Promise<void> {
    return this.engine.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** What an agent's own code holds: it spends by a token, and has no way to issue, stop, revoke or change budgets. */
export class Agent implements AsyncDisposable {
  readonly #keybrake: Keybrake;

  constructor(keybrake: Keybrake) {
    this.#keybrake = keybrake;
    keep(this, keybrake);
  }

  /** A run of a token, `KEYBRAKE_TOKEN` by default. Closing it leaves the key as it is. */
  open(token?: string | Key): Promise<Run> {
    return this.#keybrake.open(token === undefined ? {} : { token });
  }

  /** As `open`, around a function. */
  run<T>(token: string | Key | undefined, work: (run: Run) => T | Promise<T>): Promise<T> {
    return this.#keybrake.run(token === undefined ? {} : { token }, work);
  }

  /** As `Keybrake.on`. */
  on<K extends HookName>(event: K, hook: Hook<K>): () => void {
    return this.#keybrake.on(event, hook);
  }

  /** As `Keybrake.close`. */
  close(): Promise<void> {
    return this.#keybrake.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Budgets of groups, such as `tenant:acme`. */
export class BudgetDesk {
  readonly #engine: Engine;

  /** @internal */
  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Creates a scope's budgets or changes their caps: `[{ usd: 500, per: "month" }]`. */
  async set(scope: string, budgets: readonly BudgetEntry[], options: { reason?: string } = {}): Promise<void> {
    refuseUnknown(options, ["reason"], "budgets.set");
    const entries = Array.from(budgets, (entry) => requests.budgetArgument(scope, entry));
    const reason = textOf(options, "reason", "budgets.set", "plan") ?? "";
    await this.#engine.ask("set_budgets", { budgets: entries, reason, by: requests.who() });
  }

  /** A scope's budgets as they stand. */
  async get(scope: string): Promise<Budget[]> {
    return requests.budgetsFrom(await this.#engine.ask("budgets", { scope }));
  }

  /** All budgets as they stand. */
  async list(): Promise<Budget[]> {
    return requests.budgetsFrom(await this.#engine.ask("budgets", { scope: null }));
  }
}

function opening(options: OpenOptions): { args: Record<string, unknown>; owned: boolean } {
  refuseUnknown(options, OPENING, "open");
  const { token, policy, allowRunCapsOnly, ...ties } = options;
  const given = token ?? (policy === undefined ? process.env.KEYBRAKE_TOKEN || undefined : undefined);
  if (policy !== undefined && given === undefined) {
    const args = { ...requests.policyArgument(policy), ...requests.tiesArgument(ties, "open") };
    const allowed = flagOf(allowRunCapsOnly, "open: allowRunCapsOnly");
    return { args: { ...args, allow_run_caps_only: allowed }, owned: true };
  }
  if (given === undefined || policy !== undefined) {
    throw new ConfigError(
      "open a run with a token (or KEYBRAKE_TOKEN), or with a policy to have one issued; exactly one of them",
    );
  }
  const bound = requests.tiesGiven(ties);
  if (bound.length > 0) {
    throw new ConfigError(`${bound.join(", ")}: bound when a key is issued; a token that exists cannot be changed`);
  }
  return { args: { token: tokenOf(given) }, owned: false };
}

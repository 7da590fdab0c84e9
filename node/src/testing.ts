/**
 * For tests of agents, under vitest, jest or any other runner: a simulator of Stripe with its own journal of the money
 * that moved (or of Twilio or Resend, with a list of what was sent), and a `Keybrake` that spends there.
 *
 *     const books = testKeybrake({ beforeEach, afterEach }); // those of vitest or jest: new books for each test
 *     test("...", async () => {
 *       const run = await books.open({ policy });
 *       ...
 *       expect(await books.sim.moved("refund")).toBe(5000);
 *     });
 */

import { ConfigError, translated } from "./errors.js";
import { Keybrake, type KeybrakeOptions, type OpenOptions } from "./keybrake.js";
import native from "./native.cjs";
import type { Run } from "./run.js";
import type { Vendor } from "./types.js";

/** What can go wrong with a request: before the vendor acts, after it, or while its answer is on the way. */
export type FaultKind =
  | "delay_ms"
  | "drop_before"
  | "drop_after_executing"
  | "status_500_after_executing"
  | "reset_mid_body"
  | "slow_body"
  | "hold_body"
  | "rate_limit"
  | "hold_until_released"
  | "status";

/** Something that goes wrong with the next matching requests. */
export interface Fault {
  method?: string;
  pathPrefix?: string;
  times?: number;
  skip?: number;
  delayMs?: number;
  chunkBytes?: number;
  when?: string;
  status?: number;
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
}

/** A message or an e-mail that was really sent. */
export interface Sent {
  readonly kind: "message" | "call" | "verification" | "email" | "broadcast";
  /** The vendor's object: `SM…`, `CA…`, an e-mail's id. */
  readonly object: string;
  readonly to: readonly string[];
  readonly from: string | null;
  readonly idempotency_key: string | null;
  readonly [more: string]: unknown;
}

/** A request that arrived at the simulator. */
export interface SimulatedRequest {
  readonly method: string;
  readonly path: string;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly [more: string]: unknown;
}

/** A running simulator, driven over its control endpoints. Its journal is the truth about which money moved. */
export class Simulator implements Disposable {
  readonly #native: native.Simulator | null;
  /** Where it listens, on 127.0.0.1. */
  readonly url: string;
  /** The secret to use with it. */
  readonly secret: string;
  /** What every path of its API begins with. */
  readonly #root: string;

  /** @internal Use `simulator()`; with a URL, one of Stripe that runs elsewhere. */
  constructor(running: native.Simulator | string, vendor: Vendor = "stripe") {
    const elsewhere = typeof running === "string";
    this.#native = elsewhere ? null : running;
    this.url = elsewhere ? running : running.url;
    this.secret = elsewhere ? "sk_test_simulator" : running.secret;
    this.#root = vendor === "stripe" ? "/v1/" : "/";
  }

  /** One control request. */
  async control<T = Record<string, unknown>>(
    method: string,
    what: string,
    body?: unknown,
    query: Record<string, string | number> = {},
  ): Promise<T> {
    const url = new URL(`/_sim/${what}`, this.url);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
    const init = body === undefined ? { method } : { method, body: JSON.stringify(body) };
    const reply = await fetch(url, { ...init, headers: { "Content-Type": "application/json" } });
    if (!reply.ok) throw new Error(`the simulator answered ${reply.status}: ${await reply.text()}`);
    return (await reply.json()) as T;
  }

  /** What moved (less what came back) of one kind, in cents. */
  async moved(kind = "refund", currency = "usd"): Promise<number> {
    return (await this.#sum(kind, currency)).net ?? 0;
  }

  /** How many times money of one kind moved. */
  async movements(kind = "refund", currency = "usd"): Promise<number> {
    return (await this.#sum(kind, currency)).count ?? 0;
  }

  /** What was sent, oldest first (Twilio, Resend). */
  async sent(): Promise<Sent[]> {
    return (await this.control<{ sent: Sent[] }>("GET", "sent")).sent;
  }

  /** The requests that arrived, oldest first. */
  async requests(pathPrefix = this.#root, method?: string): Promise<SimulatedRequest[]> {
    const query = { path_prefix: pathPrefix, ...(method === undefined ? {} : { method }) };
    return (await this.control<{ requests: SimulatedRequest[] }>("GET", "requests", undefined, query)).requests;
  }

  /** Waits until so many requests have arrived. */
  async waitRequests(atLeast: number, pathPrefix = this.#root): Promise<void> {
    await this.control("GET", "requests", undefined, {
      path_prefix: pathPrefix,
      at_least: atLeast,
      timeout_ms: 30_000,
    });
  }

  /** Something goes wrong with the next matching requests, such as `drop_after_executing` or `hold_until_released`. */
  async fault(kind: FaultKind, options: Fault = {}): Promise<void> {
    const { method = "POST", pathPrefix = this.#root, delayMs, chunkBytes, ...more } = options;
    const match = { method, path_prefix: pathPrefix };
    await this.control("POST", "faults", { kind, match, ...more, delay_ms: delayMs, chunk_bytes: chunkBytes });
  }

  /** No more faults. */
  async clearFaults(): Promise<void> {
    await this.control("DELETE", "faults");
  }

  /** Waits until so many requests are held by a fault. */
  async waitHeld(atLeast = 1): Promise<void> {
    await this.control("GET", "waiting", undefined, { at_least: atLeast, timeout_ms: 30_000 });
  }

  /** Lets held requests go on, or drops them. */
  async release(which: Record<string, unknown> = {}): Promise<void> {
    await this.control("POST", "release", which);
  }

  /** So many charges that can be refunded, each of `amount` cents. */
  async charges(count: number, amount: number): Promise<string[]> {
    const seed = { charges: Array.from({ length: count }, () => ({ amount })) };
    return (await this.control<{ charges: string[] }>("POST", "seed", seed)).charges;
  }

  /** Back to the start: standard objects, an empty journal, no faults. */
  async reset(): Promise<void> {
    await this.control("POST", "reset", { seed: "standard" });
  }

  /** Stops it; nothing listens on its port afterwards. Safe to repeat. */
  stop(): void {
    this.#native?.stop();
  }

  [Symbol.dispose](): void {
    this.stop();
  }

  async #sum(kind: string, currency: string): Promise<{ net?: number; count?: number }> {
    const totals = await this.control<Totals>("GET", "totals");
    return totals[kind]?.[currency] ?? {};
  }
}

/** What moved, by kind and currency. */
type Totals = Record<string, Record<string, { net?: number; count?: number }>>;

/** A simulator of Stripe, or of another vendor, inside this process, on a free port of 127.0.0.1 unless told otherwise. */
export function simulator(options: { vendor?: Vendor; port?: number } = {}): Simulator {
  const { vendor = "stripe", port = 0 } = options;
  return new Simulator(
    translated(() => new native.Simulator(vendor, port)),
    vendor,
  );
}

/** `beforeEach` and `afterEach` of a test runner. */
export interface RunnerHooks {
  beforeEach(work: () => void): unknown;
  afterEach(work: () => Promise<void>): unknown;
}

/** What `testKeybrake` is made of: the settings of its `Keybrake` (whose ledger is in memory), and the runner's hooks. */
export interface TestOptions extends Omit<KeybrakeOptions, "ledger">, Partial<RunnerHooks> {}

/**
 * A `Keybrake` with a ledger in memory, whose calls to Stripe go to a simulator in this process. With the hooks of a
 * runner, given once at the top of a test file, every test gets new ones; without, there is one, to be closed
 * (`await using`, or `close`).
 */
export function testKeybrake(options: TestOptions = {}): TestKeybrake {
  const { beforeEach, afterEach, ...settings } = options;
  if (!beforeEach !== !afterEach)
    throw new ConfigError("testKeybrake needs both hooks, or none: beforeEach, afterEach");
  const books = new TestKeybrake(settings);
  if (!beforeEach || !afterEach) {
    books.start();
    return books;
  }
  beforeEach(() => books.start());
  afterEach(() => books.close());
  return books;
}

interface Books {
  sim: Simulator;
  keybrake: Keybrake;
  runs: Run[];
}

/** The books of one test. */
export class TestKeybrake implements AsyncDisposable {
  readonly #settings: Omit<KeybrakeOptions, "ledger">;
  #now: Books | null = null;

  /** @internal Use `testKeybrake`. */
  constructor(settings: Omit<KeybrakeOptions, "ledger">) {
    this.#settings = settings;
  }

  /** The simulator. Its journal is the truth about which money moved. */
  get sim(): Simulator {
    return this.#current().sim;
  }

  /** The `Keybrake`, to give to the code under test. */
  get keybrake(): Keybrake {
    return this.#current().keybrake;
  }

  /** A run that is closed with the test. */
  async open(options: OpenOptions): Promise<Run> {
    const { keybrake, runs } = this.#current();
    const run = await keybrake.open(options);
    runs.push(run);
    return run;
  }

  /** @internal The runner's hook calls it. */
  start(): void {
    const sim = simulator();
    const { secrets, baseUrls, ...more } = this.#settings;
    const keybrake = new Keybrake({
      ...more,
      ledger: "memory:",
      secrets: { stripe: sim.secret, ...secrets },
      baseUrls: { stripe: sim.url, ...baseUrls },
    });
    this.#now = { sim, keybrake, runs: [] };
  }

  /** Closes its runs, the `Keybrake` and the simulator. Safe to repeat. */
  async close(): Promise<void> {
    if (!this.#now) return;
    const { sim, keybrake, runs } = this.#now;
    this.#now = null;
    try {
      await Promise.all(runs.map((run) => run.close()));
    } finally {
      await keybrake.close();
      sim.stop();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #current(): Books {
    if (!this.#now) throw new ConfigError("these books are not open: use them inside a test, and not after `close`");
    return this.#now;
  }
}

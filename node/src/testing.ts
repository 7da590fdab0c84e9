/**
 * For tests of agents: a simulator of Stripe with its own journal of the money that moved.
 *
 *     using sim = simulator();
 *     const kb = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
 *     ...
 *     expect(await sim.moved("refund")).toBe(5000);
 */

import { translated } from "./errors.js";
import native from "./native.cjs";

/** Something that goes wrong with the next matching requests. */
export interface Fault {
  method?: string;
  pathPrefix?: string;
  times?: number;
  skip?: number;
  delayMs?: number;
  when?: string;
  status?: number;
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
  /** The secret key to use with it; any that begins with `sk_test_` works. */
  readonly secret = "sk_test_simulator";

  /** @internal Use `simulator()`; with a URL, one that runs elsewhere. */
  constructor(running: native.Simulator | string) {
    this.#native = typeof running === "string" ? null : running;
    this.url = typeof running === "string" ? running : running.url;
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

  /** The requests that arrived, oldest first. */
  async requests(pathPrefix = "/v1/", method?: string): Promise<SimulatedRequest[]> {
    const query = { path_prefix: pathPrefix, ...(method === undefined ? {} : { method }) };
    return (await this.control<{ requests: SimulatedRequest[] }>("GET", "requests", undefined, query)).requests;
  }

  /** Waits until so many requests have arrived. */
  async waitRequests(atLeast: number, pathPrefix = "/v1/"): Promise<void> {
    await this.control("GET", "requests", undefined, {
      path_prefix: pathPrefix,
      at_least: atLeast,
      timeout_ms: 30_000,
    });
  }

  /** Something goes wrong with the next matching requests, such as `drop_after` or `hold`. */
  async fault(kind: string, options: Fault = {}): Promise<void> {
    const { method = "POST", pathPrefix = "/v1/", delayMs, ...more } = options;
    const delay = delayMs === undefined ? {} : { delay_ms: delayMs };
    await this.control("POST", "faults", { kind, match: { method, path_prefix: pathPrefix }, ...more, ...delay });
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

/** A simulator inside this process, on a free port of 127.0.0.1 unless told otherwise. */
export function simulator(options: { port?: number } = {}): Simulator {
  return new Simulator(translated(() => new native.Simulator(options.port ?? 0)));
}

/** The native engine behind one `Keybrake`, and how TypeScript waits for it. */

import { fromNative, KeybrakeError, translated } from "./errors.js";
import native from "./native.cjs";

export type Answer = native.Answer;
export type Stream = native.Stream;
export type Verdict = native.Verdict;

/** One HTTP request for the engine. */
export interface Request {
  readonly method: string;
  readonly url: string;
  /** Names and values, in turn. */
  readonly headers: string[];
  readonly body: Uint8Array;
  /** Attribution, as JSON. */
  readonly context: string;
  /** How long it may wait while only open holds stand in its way. */
  readonly waitMs: number;
  readonly signal: AbortSignal | null;
}

/** The settings of an engine, as the native module reads them. */
export interface Settings {
  ledger: string | null;
  secrets: Record<string, Record<string, string>>;
  base_urls: Record<string, string>;
}

const open = openEngines();

/** The engine behind one `Keybrake`. */
export class Engine {
  readonly #native: native.Engine;
  #closing: Promise<void> | null = null;
  /** Vendors whose calls go to a simulator on this machine; a base URL is never anything else. */
  readonly loopbackVendors: ReadonlySet<string>;

  constructor(settings: Settings) {
    this.#native = translated(() => new native.Engine(JSON.stringify(settings)));
    const given = Object.entries(settings.base_urls).filter(([, url]) => url);
    this.loopbackVendors = new Set([...given.map(([vendor]) => vendor), ...vendorsByVariable()]);
    open.add(this);
  }

  get closed(): boolean {
    return this.#closing !== null;
  }

  /** Opens the ledger now; without it, the first use does. */
  async ready(): Promise<void> {
    await this.#wait(() => this.#native.open());
  }

  /** One question or order to the ledger. */
  async ask<T>(what: string, args: Readonly<Record<string, unknown>>): Promise<T> {
    return JSON.parse(await this.#wait(() => this.#native.ask(what, JSON.stringify(args)))) as T;
  }

  /** One governed call. Giving it up by its signal aborts the request and leaves its hold unknown. */
  send(request: Request, stream: boolean): Promise<Answer> {
    const how = stream ? "openStream" : "send";
    return this.#call(request.signal, (cancel) => this.#native[how](...partsOf(request), cancel));
  }

  /** Judges a call and reserves what it can cost; the caller sends it. Given up by its signal, a hold may stand. */
  authorize(request: Request): Promise<Verdict> {
    return this.#call(request.signal, (cancel) => this.#native.authorize(...partsOf(request), cancel));
  }

  async #call<T>(signal: AbortSignal | null, start: (cancel: native.Cancel | null) => Promise<T>): Promise<T> {
    if (!signal) return this.#wait(() => start(null));
    signal.throwIfAborted();
    const cancel = new native.Cancel();
    const give = () => cancel.cancel();
    signal.addEventListener("abort", give, { once: true });
    try {
      return await this.#wait(() => start(cancel));
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener("abort", give);
    }
  }

  /** Ends the engine: calls under way are given up (their holds stay), what is lazy is written down. Safe to repeat. */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  /** The same while the process exits; waits for a `close` that is under way. */
  closeNow(): void {
    this.#closing ??= Promise.resolve();
    this.#native.closeNow();
  }

  async #end(): Promise<void> {
    try {
      await this.#native.close();
    } catch (error) {
      throw fromNative(error);
    } finally {
      open.delete(this);
    }
  }

  async #wait<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new KeybrakeError("this Keybrake is closed");
    try {
      return await work();
    } catch (error) {
      throw fromNative(error);
    }
  }
}

function partsOf(request: Request): [string, string, string[], Uint8Array, string, number] {
  const { method, url, headers, body, context, waitMs } = request;
  return [method, url, headers, body, context, waitMs];
}

function vendorsByVariable(): string[] {
  const prefix = "KEYBRAKE_BASE_URL_";
  const named = Object.keys(process.env).filter((name) => name.startsWith(prefix) && process.env[name]);
  return named.map((name) => name.slice(prefix.length).toLowerCase());
}

/** Engines that are open in this thread, closed at its exit. One list for every build and every hot reload. */
function openEngines(): Set<Engine> {
  const key = Symbol.for("keybrake.engines");
  const shared = globalThis as { [key]?: Set<Engine> };
  if (!shared[key]) {
    const engines = new Set<Engine>();
    shared[key] = engines;
    process.once("exit", () => {
      for (const engine of engines) closeAtExit(engine);
    });
  }
  return shared[key];
}

/** One ledger that cannot be reached keeps no other from being written down. */
function closeAtExit(engine: Engine): void {
  try {
    engine.closeNow();
  } catch (error) {
    console.error(`keybrake: at exit: ${error instanceof Error ? error.message : String(error)}`);
  }
}

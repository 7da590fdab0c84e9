/** The native engine behind one `Keybrake`, and how TypeScript waits for it. */

import { clearInterval, setImmediate, setInterval } from "node:timers";
import { fromNative, KeybrakeError, translated } from "./errors.js";
import native from "./native.cjs";

export type Stream = native.Stream;
export type Verdict = native.Verdict;

/** How a call ended. */
export interface Answer {
  readonly kind: native.Answer["kind"];
  readonly status: number;
  /** Names in lower case and values, in turn. */
  readonly headers: readonly string[];
  /** What Keybrake noted of it, as JSON. */
  readonly record: string;
  readonly denial: string | null;
  readonly reason: string | null;
  readonly neverSent: boolean;
  /** Whether it was given up because its time was over. */
  readonly overdue?: boolean;
  /** The body: text where the engine found it to be UTF-8 and short. */
  takeBody(): Buffer | string;
  takeStream(): Stream | null;
}

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
  /** After so long the call is given up, as by a signal; 0 for never. */
  readonly mostMs: number;
}

/** The settings of an engine, as the native module reads them. */
export interface Settings {
  ledger: string | null;
  secrets: Record<string, Record<string, string>>;
  base_urls: Record<string, string>;
}

const open = openEngines();

// As they are now: a test may put its own in their place for a while.
const [every, soon, never] = [setInterval, setImmediate, clearInterval];

/** The longest that a call can be given, in milliseconds: what 32 bits hold. */
const LONGEST_MS = 2 ** 32 - 1;

/** The engine behind one `Keybrake`. */
export class Engine {
  readonly #native: native.Engine;
  readonly #waiting = new Waiting();
  #closing: Promise<void> | null = null;
  /** Vendors whose calls go to a simulator on this machine; a base URL is never anything else. */
  readonly loopbackVendors: ReadonlySet<string>;

  constructor(settings: Settings) {
    try {
      this.#native = translated(() => new native.Engine(JSON.stringify(settings), this.#waiting.ended));
    } catch (error) {
      this.#waiting.end();
      throw error;
    }
    this.loopbackVendors = new Set(Object.keys(settings.base_urls));
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
    return this.#unlessAborted(request.signal, (cancel) => this.#send(request, stream, cancel));
  }

  #send(request: Request, stream: boolean, cancel: native.Cancel | null): Promise<Answer> {
    if (this.#closing) return Promise.reject(closed());
    const { method, url, headers, body, context, waitMs, mostMs } = request;
    const most = Math.min(Math.ceil(mostMs), LONGEST_MS);
    return this.#waiting.add((number) =>
      this.#native.send(number, method, url, lines(headers), body, context, waitMs, most, stream, cancel),
    );
  }

  /**
   * Judges a call and reserves what it can cost; the caller sends it. A verdict that comes when its signal has given it
   * up is nobody's: its hold stands.
   */
  authorize(request: Request): Promise<Verdict> {
    const { method, url, headers, body, context, waitMs } = request;
    return this.#unlessAborted(request.signal, (cancel) =>
      this.#wait(() => this.#native.authorize(method, url, headers, body, context, waitMs, cancel)),
    );
  }

  #unlessAborted<T>(signal: AbortSignal | null, start: (cancel: native.Cancel | null) => Promise<T>): Promise<T> {
    return signal ? unlessAborted(signal, start) : start(null);
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
      this.#waiting.end();
    }
  }

  async #wait<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closing) throw closed();
    try {
      return await work();
    } catch (error) {
      throw fromNative(error);
    }
  }
}

/** Calls whose answers are on their way. While there are any, the process stays alive. */
class Waiting {
  readonly #calls = new Map<number, { resolve: (answer: Answer) => void; reject: (error: unknown) => void }>();
  readonly #awake = every(() => {}, 2 ** 30).unref();
  #last = 0;

  /** The answer to a call that `start` makes under a number. */
  add(start: (number: number) => void): Promise<Answer> {
    this.#last = (this.#last + 1) >>> 0;
    const number = this.#last;
    return new Promise((resolve, reject) => {
      try {
        start(number);
      } catch (error) {
        return reject(fromNative(error));
      }
      if (this.#calls.size === 0) this.#awake.ref();
      this.#calls.set(number, { resolve, reject });
    });
  }

  /** No call is made any more: what is still to be heard is heard in the next turn of the event loop. */
  end(): void {
    soon(() => never(this.#awake));
  }

  readonly ended: native.Ended = (
    number,
    failure,
    overdue,
    kind,
    status,
    head,
    body,
    record,
    denial,
    reason,
    neverSent,
    stream,
  ) => {
    const call = this.#calls.get(number);
    this.#calls.delete(number);
    if (this.#calls.size === 0) this.#awake.unref();
    if (failure !== null) return call?.reject(overdue ? timedOut() : fromNative(new Error(failure)));
    call?.resolve(new Given(kind, status, head, body ?? "", record, denial, reason, neverSent, overdue, stream));
  };
}

/** An answer as the engine gave it. */
class Given implements Answer {
  constructor(
    readonly kind: Answer["kind"],
    readonly status: number,
    readonly head: string,
    readonly body: Buffer | string,
    readonly record: string,
    readonly denial: string | null,
    readonly reason: string | null,
    readonly neverSent: boolean,
    readonly overdue: boolean,
    readonly stream: Stream | null,
  ) {}

  get headers(): readonly string[] {
    return this.head.split("\n");
  }

  takeBody(): Buffer | string {
    return this.body;
  }

  takeStream(): Stream | null {
    return this.stream;
  }
}

async function unlessAborted<T>(signal: AbortSignal, start: (cancel: native.Cancel | null) => Promise<T>): Promise<T> {
  signal.throwIfAborted();
  const cancel = new native.Cancel();
  const give = () => cancel.cancel();
  signal.addEventListener("abort", give, { once: true });
  try {
    return await start(cancel);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener("abort", give);
  }
}

/**
 * What the caller of a call gets whose time was over: what a signal of `AbortSignal.timeout` throws. Its `cause`, if it
 * has one, says what a call in flight may have done; without one, nothing was sent.
 */
export function timedOut(cause: Error | null = null): DOMException {
  const error = new DOMException("The operation was aborted due to timeout", "TimeoutError");
  return cause ? Object.defineProperty(error, "cause", { value: cause, configurable: true }) : error;
}

function closed(): KeybrakeError {
  return new KeybrakeError("this Keybrake is closed");
}

/** As one text, which crosses more cheaply than many. What would not come back the same is handed over as it is. */
function lines(headers: string[]): string | string[] {
  return headers.some((text) => text.includes("\n")) ? headers : headers.join("\n");
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

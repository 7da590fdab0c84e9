/**
 * `authorize` and `settle`, for code that keeps its own way to send.
 *
 *     const verdict = await run.authorize("https://api.stripe.com/v1/refunds", { method: "POST", body });
 *     if (verdict.kind !== "permit") return verdict.response;      // refused, or done before: nothing may be sent
 *     return await verdict.permit.send(myFetch);                   // or: request(), then settle, lost or neverSent
 *
 * A permit that is not settled stays held, also when it is garbage-collected: only proof releases money.
 */

import { keyOriginOf, type Permitted, pairs, permitted } from "./call.js";
import { ConfigError, type Denied, translated } from "./errors.js";
import type { Front } from "./front.js";
import { usdFromMicros } from "./money.js";
import { refuseUnknown, waitOf } from "./options.js";
import type { CallInfo } from "./types.js";
import { type Input, responseOf, type WebCall, webCall } from "./web.js";

/** What was decided of a call. */
export type Authorization =
  | { readonly kind: "permit"; readonly permit: Permit }
  /** Refused: the response is the refusal in the vendor's own shape. */
  | { readonly kind: "denied"; readonly denied: Denied; readonly response: Response; readonly info: CallInfo }
  /** Done before: the response is the receipt of the first call. */
  | { readonly kind: "replayed"; readonly response: Response; readonly info: CallInfo };

export interface AuthorizeOptions {
  /** How long it may wait while only open holds stand in its way; 0 by default. */
  waitMs?: number;
}

/** The headers of a reply, in any of the usual shapes. */
export type RepliedHeaders =
  | Iterable<readonly [string, string]>
  | Readonly<Record<string, string | readonly string[] | undefined>>;

/** A vendor's reply, whole: a `Response` (of whatever `fetch`) that nobody has read, or its parts. */
export type Replied =
  | {
      readonly status: number;
      readonly headers: RepliedHeaders;
      arrayBuffer(): Promise<ArrayBuffer>;
    }
  | {
      readonly status: number;
      readonly headers: RepliedHeaders;
      readonly body: Uint8Array | string;
    };

/** How a body was packed on its way: undone by whoever read it. */
const FRAMING = ["content-encoding", "content-length", "transfer-encoding"];

/** @internal */
export async function authorize(
  front: Front,
  input: Input,
  init: RequestInit | undefined,
  options: AuthorizeOptions,
): Promise<Authorization> {
  refuseUnknown(options, ["waitMs"], "authorize");
  const waitMs = waitOf(options.waitMs);
  const call = await webCall(front.token, input, init);
  const { keybrake, run } = front;
  const decided = await permitted(keybrake, { ...call, keyOrigin: keyOriginOf(call.headers), run, waitMs });
  if (decided.kind === "permit") return { kind: "permit", permit: new Permit(decided, call) };
  const { info } = decided;
  const response = responseOf(decided, call);
  return decided.kind === "denied"
    ? { kind: "denied", denied: decided.denied, response, info }
    : { kind: "replayed", response, info };
}

/** Permission to send one attempt. Tell how it ended, once; until then, and without that for good, its amount is held. */
export class Permit {
  readonly #permitted: Permitted;
  readonly #call: WebCall;
  /** The call, as in the audit. */
  readonly callId: string;
  /** What is reserved for it, in dollars. */
  readonly heldUsd: string;

  /** @internal */
  constructor(permitted: Permitted, call: WebCall) {
    this.#permitted = permitted;
    this.#call = call;
    this.callId = permitted.permit.callId;
    this.heldUsd = usdFromMicros(BigInt(permitted.permit.micros));
  }

  /**
   * Whether its time to be sent was over before its request was handed out (by `send` or `request`): then nothing left.
   * Send nothing, and say `neverSent()`.
   */
  get expired(): boolean {
    return this.#permitted.permit.expired;
  }

  /**
   * What to send, exactly, handed out once: send it once, at once, and follow no redirect. It carries **the vendor's real
   * secret**, which is a JavaScript string from here on: log nothing of it. Its signal aborts when the permit's time for a
   * reply is over.
   */
  request(): Request {
    const { url, init } = this.#handOut(false);
    return new Request(url, init);
  }

  /**
   * Sends it, once, by a `fetch` (any that takes a URL and an init), reads the reply whole and settles. Whatever that
   * `fetch` throws is thrown, and the call is then `unknown`: nobody can tell from outside whether anything left. The
   * signal of the authorised call aborts it. Until it has ended, `settle` and `neverSent` are refused, and `lost` is taken.
   *
   * The platform's `fetch` itself repeats a request that was answered 421, which says that it was not carried out.
   */
  async send(by: Fetching = fetch): Promise<Response> {
    const mine = this.#call.signal ?? new AbortController().signal;
    // Handed out by `request()`, it may be out already: then only its own end settles it.
    if (mine.aborted && !this.#permitted.permit.handedOut) {
      await this.neverSent();
      throw mine.reason;
    }
    if (this.expired) {
      await this.neverSent();
      throw new ConfigError("the permit expired before it was sent; nothing was sent: authorize the call anew");
    }
    const { url, init } = this.#handOut(true);
    const given = new AbortController();
    const { signal: late } = init;
    const reason = () => given.abort(mine.aborted ? mine.reason : late.reason);
    for (const signal of [mine, late]) signal.addEventListener("abort", reason, { once: true });
    try {
      const reply = await by(url, { ...init, signal: given.signal });
      const body = new Uint8Array(await reply.arrayBuffer());
      return await this.#settle({ status: reply.status, headers: reply.headers, body }, true);
    } catch (error) {
      // Settled already when it was the books that failed; then this changes nothing.
      await this.lost(given.signal.aborted ? "cancelled" : "connection_lost").catch(() => {});
      throw error;
    } finally {
      for (const signal of [mine, late]) signal.removeEventListener("abort", reason);
    }
  }

  /** The vendor answered what you sent. Answers the reply with Keybrake's headers on it; only then hand it on. */
  async settle(reply: Replied): Promise<Response> {
    return this.#settle(reply, false);
  }

  async #settle(reply: Replied, sent: boolean): Promise<Response> {
    const body = "arrayBuffer" in reply ? new Uint8Array(await reply.arrayBuffer()) : bytesOf(reply.body);
    const headers = headersOf(reply.headers).filter(([name]) => !FRAMING.includes(name.toLowerCase()));
    if (!Number.isInteger(reply.status)) throw notAReply(`a status that is ${typeof reply.status}`);
    const { permit, settled } = this.#permitted;
    const settling = translated(() => permit.replied(reply.status, headers.flat(), body, sent));
    return responseOf(await settled(settling), this.#call);
  }

  /** Nobody knows whether it was done: a timeout, a reset, an abort. It stays held as `unknown`. */
  async lost(reason = "connection_lost"): Promise<CallInfo> {
    const { permit, settled } = this.#permitted;
    return (await settled(permit.lost(reason))).info;
  }

  /**
   * It is **certain** that no byte left: the hold is given up. After `request()` that is your word, and the cap is
   * overspent if it is not so: never say it because it "probably" failed. Once `send` has begun it is refused.
   */
  async neverSent(): Promise<CallInfo> {
    const { permit, settled } = this.#permitted;
    return (await settled(permit.neverSent())).info;
  }

  #handOut(sending: boolean): { url: string; init: PermittedInit } {
    const { permit } = this.#permitted;
    const within = permit.sendWithinMs + permit.requestMs;
    const { method, url, headers, body } = translated(() => permit.handOut(sending));
    const init = {
      method,
      headers: Object.fromEntries(pairs(headers)),
      redirect: "manual",
      // Frameworks that patch `fetch` keep answers, which are others' money.
      cache: "no-store",
      signal: AbortSignal.timeout(within),
      ...(body.byteLength > 0 ? { body: new Uint8Array(body) } : {}),
    } as const;
    return { url, init };
  }
}

/** What `send` sends by: the platform's `fetch`, undici's, node-fetch. */
export type Fetching = (
  url: string,
  init: PermittedInit,
) => Promise<{ readonly status: number; readonly headers: RepliedHeaders; arrayBuffer(): Promise<ArrayBuffer> }>;

/** The init that `send` gives: exactly what was permitted. */
export interface PermittedInit {
  readonly method: string;
  readonly headers: Record<string, string>;
  readonly body?: Uint8Array<ArrayBuffer>;
  readonly redirect: "manual";
  readonly cache: "no-store";
  readonly signal: AbortSignal;
}

function bytesOf(body: unknown): Uint8Array {
  if (typeof body === "string") return Buffer.from(body, "utf8");
  if (body instanceof Uint8Array) return body;
  throw notAReply("a body that is neither text nor a Uint8Array");
}

/** Pairs, whatever they came in; a list of values is as many headers. */
function headersOf(headers: RepliedHeaders): [string, string][] {
  if (typeof headers !== "object" || headers === null) throw notAReply("no headers");
  const given = Symbol.iterator in headers ? headers : Object.entries(headers);
  const found: [string, string][] = [];
  for (const [name, value] of given as Iterable<readonly [string, string | readonly string[] | undefined]>) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null) found.push([String(name), String(one)]);
    }
  }
  return found;
}

function notAReply(what: string): ConfigError {
  return new ConfigError(
    `settle was given ${what}; give it an unread Response, or { status, headers, body } with a body of text or bytes. ` +
      "The amount stays held until then",
  );
}

/**
 * `authorize` and `settle`, for code that keeps its own way to send.
 *
 *     const verdict = await run.authorize("https://api.stripe.com/v1/refunds", { method: "POST", body });
 *     if (verdict.kind !== "permit") return verdict.response;      // refused, or done before: nothing may be sent
 *     return await verdict.permit.send(myFetch);                   // or: request(), then settle, lost or neverSent
 *
 * A permit that is not settled stays held, also when it is garbage-collected: only proof releases money.
 */

import { type Permitted, pairs, permitted } from "./call.js";
import { ConfigError, type Denied, translated } from "./errors.js";
import type { Front } from "./front.js";
import { usdFromMicros } from "./money.js";
import { refuseUnknown, waitOf } from "./options.js";
import type { CallInfo } from "./types.js";
import { type Input, keyOrigin, responseOf, type WebCall, webCall } from "./web.js";

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

/** A vendor's reply, whole: a `Response` that nobody has read, or its parts. */
export type Replied =
  | Response
  | {
      readonly status: number;
      readonly headers: Iterable<readonly [string, string]>;
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
  const decided = await permitted(keybrake, { ...call, keyOrigin: keyOrigin(call.headers), run, waitMs });
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

  /** Whether its time to be sent is over: then send nothing, and say `neverSent()`. */
  get expired(): boolean {
    return this.#permitted.permit.sendWithinMs === 0;
  }

  /**
   * What to send, exactly; send it once, and follow no redirect. It carries **the vendor's real secret**, which is a
   * JavaScript string from here on: log nothing of it. Its signal aborts when the permit's time for a reply is over.
   */
  request(): Request {
    const { permit } = this.#permitted;
    const [method, url, headers, body] = translated(() => [
      permit.method(),
      permit.url(),
      permit.headers(),
      permit.body(),
    ]);
    return new Request(url, {
      method,
      headers: pairs(headers) as [string, string][],
      redirect: "manual",
      signal: AbortSignal.timeout(permit.sendWithinMs + permit.requestMs),
      ...(body.byteLength > 0 ? { body: new Uint8Array(body) } : {}),
    });
  }

  /**
   * Sends it by a `fetch`, reads the reply whole and settles. Whatever that `fetch` throws is thrown, and the call is
   * then `unknown`: nobody can tell from outside whether anything left. The signal of the authorised call aborts it.
   */
  async send(by: typeof fetch = fetch): Promise<Response> {
    if (this.expired) {
      await this.neverSent();
      throw new ConfigError("the permit expired before it was sent; nothing was sent: authorize the call anew");
    }
    const request = this.request();
    const given = new AbortController();
    const reason = () => given.abort(this.#call.signal.aborted ? this.#call.signal.reason : request.signal.reason);
    const signals = [this.#call.signal, request.signal];
    for (const signal of signals) signal.addEventListener("abort", reason, { once: true });
    if (this.#call.signal.aborted) reason();
    try {
      const reply = await by(request, { signal: given.signal });
      const body = new Uint8Array(await reply.arrayBuffer());
      return await this.settle({ status: reply.status, headers: reply.headers, body });
    } catch (error) {
      // Settled already when it was the books that failed; then this changes nothing.
      await this.lost(given.signal.aborted ? "cancelled" : "connection_lost").catch(() => {});
      throw error;
    } finally {
      for (const signal of signals) signal.removeEventListener("abort", reason);
    }
  }

  /** The vendor answered. Answers the reply with Keybrake's headers on it; only then hand it on. */
  async settle(reply: Replied): Promise<Response> {
    const body = reply instanceof Response ? new Uint8Array(await reply.arrayBuffer()) : bytesOf(reply.body);
    const headers = [...reply.headers].filter(([name]) => !FRAMING.includes(name.toLowerCase()));
    const { permit, settled } = this.#permitted;
    return responseOf(await settled(permit.replied(reply.status, headers.flat(), body)), this.#call);
  }

  /** Nobody knows whether it was done: a timeout, a reset, an abort. It stays held as `unknown`. */
  async lost(reason = "connection_lost"): Promise<CallInfo> {
    const { permit, settled } = this.#permitted;
    return (await settled(permit.lost(reason))).info;
  }

  /** It is **certain** that no byte left: the hold is given up. Never say so because it "probably" failed. */
  async neverSent(): Promise<CallInfo> {
    const { permit, settled } = this.#permitted;
    return (await settled(permit.neverSent())).info;
  }
}

function bytesOf(body: Uint8Array | string): Uint8Array {
  return typeof body === "string" ? Buffer.from(body, "utf8") : body;
}

/**
 * Stripe through Keybrake: a real `Stripe` whose every call is governed by the vault key it holds.
 *
 * The token stands where the secret key stood. This module adds the transport; retries, pagination, streaming, files
 * and v2 stay the SDK's own.
 */

import { Readable } from "node:stream";
import Stripe from "stripe";
import { type Body, Document, type Ended, governed, type Headers, keyOriginOf, lostText, textOf } from "./call.js";
import { KeybrakeError } from "./errors.js";
import { argumentsOf, type Front, refuseTaken } from "./front.js";
import type { Agent, Keybrake } from "./keybrake.js";
import type { Key, Run } from "./run.js";

/** The SDK's own options, without what Keybrake's transport replaces, and `waitMs`. */
export interface StripeOptions
  extends Omit<Stripe.StripeConfig, "httpClient" | "httpAgent" | "host" | "port" | "protocol"> {
  /** How long a call may wait while only open holds stand in its way; 0 by default. */
  waitMs?: number;
}

/** A real `Stripe` that spends by a run, or by a vault key: `createStripe(run)`, `createStripe(keybrake, token)`. */
export function createStripe(run: Run, options?: StripeOptions): Stripe;
export function createStripe(keybrake: Keybrake | Agent, token: string | Key, options?: StripeOptions): Stripe;
export function createStripe(
  from: Run | Keybrake | Agent,
  second?: string | Key | StripeOptions,
  third?: StripeOptions,
): Stripe {
  const { front, options: given } = argumentsOf(from, second, third);
  const { waitMs = 0, ...options } = given;
  refuseTaken(options, ["httpClient", "httpAgent", "host", "port", "protocol", "authenticator"]);
  return new Stripe(front.token, { ...options, httpClient: new BrakeHttpClient(front, waitMs) } as Stripe.StripeConfig);
}

/** Stripe's HTTP client, with the judging, the sending and the settling done by the native module. */
export class BrakeHttpClient extends Stripe.HttpClient {
  readonly #front: Front;
  readonly #waitMs: number;

  /** @internal */
  constructor(front: Front, waitMs: number) {
    super();
    this.#front = front;
    this.#waitMs = waitMs;
  }

  override getClientName(): string {
    return "keybrake";
  }

  /** One governed attempt. */
  override async makeRequest(
    host: string,
    port: string | number,
    path: string,
    method: string,
    headers: Record<string, string | number | string[]>,
    requestData: unknown,
    protocol: string,
    timeout: number,
  ): Promise<BrakeResponse> {
    const url = `${protocol}://${host}${isDefaultPort(protocol, port) ? "" : `:${port}`}${path}`;
    try {
      const ended = await governed(this.#front.keybrake, {
        method,
        url,
        headers: pairs(headers),
        body: bytes(requestData),
        keyOrigin: keyOriginOf(pairs(headers)),
        run: this.#front.run,
        waitMs: this.#waitMs,
        mostMs: Math.max(timeout, 0),
        stream: true,
      });
      return answered(ended);
    } catch (error) {
      if ((error as { name?: unknown } | null)?.name === "TimeoutError") throw Stripe.HttpClient.makeTimeoutError();
      if (error instanceof KeybrakeError) return failed(error);
      throw error;
    }
  }
}

/** A reply as the SDK reads it. */
class BrakeResponse extends Stripe.HttpClientResponse {
  readonly #body: Body | Document;

  constructor(status: number, headers: Headers, body: Body | Document) {
    super(status, Object.fromEntries(headers));
    this.#body = body;
  }

  override getRawResponse(): unknown {
    return { statusCode: this.getStatusCode(), headers: this.getHeaders() };
  }

  override toStream(streamCompleteCallback: () => void): unknown {
    const body = this.#body;
    const stream = Readable.from(body instanceof Document ? body : [body], { objectMode: false });
    stream.once("end", streamCompleteCallback);
    return stream;
  }

  override async toJSON(): Promise<unknown> {
    const body = this.#body;
    if (!(body instanceof Document)) return JSON.parse(textOf(body));
    const pieces: Buffer[] = [];
    for await (const piece of body) pieces.push(piece);
    return JSON.parse(Buffer.concat(pieces).toString("utf8"));
  }
}

/** Throwing is retried by the SDK and hides the reason, so only a lost reply is thrown: its attempt joins the spend. */
function answered(ended: Ended): BrakeResponse {
  switch (ended.kind) {
    case "reply":
    case "stream":
      return new BrakeResponse(ended.status, ended.headers, ended.body);
    case "denied":
      return new BrakeResponse(ended.status, [...ended.headers, ["stripe-should-retry", "false"]], ended.body);
    case "lost":
      throw new Error(lostText(ended, "Stripe"));
  }
}

/** A failure of Keybrake itself, in its own words, which also say when the call may have left. Repeating does not help. */
function failed(error: KeybrakeError): BrakeResponse {
  const body = { error: { type: "api_error", code: "keybrake", message: `${error.name}: ${error.message}` } };
  const headers = [["stripe-should-retry", "false"]] as const;
  return new BrakeResponse(503, headers, Buffer.from(JSON.stringify(body)));
}

function* pairs(headers: Record<string, string | number | string[]>): Generator<[string, string]> {
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined && value !== null) yield [name, String(value)];
  }
}

function bytes(data: unknown): Uint8Array {
  if (data instanceof Uint8Array) return data;
  return Buffer.from(data === undefined || data === null ? "" : String(data), "utf8");
}

function isDefaultPort(protocol: string, port: string | number): boolean {
  return String(port) === (protocol === "https" ? "443" : "80");
}

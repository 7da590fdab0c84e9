/**
 * Twilio through Keybrake: a real twilio client whose every call is governed by the vault key it holds.
 *
 * The token stands where the auth token stood. This module replaces what carries the SDK's requests; their encoding,
 * `autoRetry`, paging, timeouts and errors stay the SDK's own.
 */

import twilio from "twilio";
import { type Ended, governed, lostText, textOf } from "./call.js";
import { ConfigError, VendorError } from "./errors.js";
import { argumentsOf, type Front, refuseTaken } from "./front.js";
import type { Agent, Keybrake } from "./keybrake.js";
import type { Key, Run } from "./run.js";

type ClientOptions = NonNullable<Parameters<typeof twilio>[2]>;
type RequestClientOptions = NonNullable<ConstructorParameters<typeof twilio.RequestClient>[0]>;

/** Options of the SDK that belong to the connection, or to a secret that the agent does not have. */
const TAKEN = [
  "httpClient",
  "keepAlive",
  "keepAliveMsecs",
  "maxSockets",
  "maxTotalSockets",
  "maxFreeSockets",
  "scheduling",
  "ca",
  "validationClient",
] as const;

/** The SDK's own options, without what Keybrake's transport replaces, and `waitMs`. */
export interface TwilioOptions extends Omit<ClientOptions, (typeof TAKEN)[number]> {
  /** The account; by default the one that the secret belongs to, which is the only one that is reached. */
  accountSid?: string;
  /** How long a call may wait while only open holds stand in its way; 0 by default. */
  waitMs?: number;
}

/** Stands for the secret's own account (`OWN_ACCOUNT` in Rust), so that an agent need not know it. */
const OWN_ACCOUNT = "AC00000000000000000000000000000000";

/** A real twilio client that spends by a run, or by a vault key: `createTwilio(run)`, `createTwilio(keybrake, token)`. */
export function createTwilio(run: Run, options?: TwilioOptions): twilio.Twilio;
export function createTwilio(keybrake: Keybrake | Agent, token: string | Key, options?: TwilioOptions): twilio.Twilio;
export function createTwilio(
  from: Run | Keybrake | Agent,
  second?: string | Key | TwilioOptions,
  third?: TwilioOptions,
): twilio.Twilio {
  const { front, options: given } = argumentsOf(from, second, third);
  const { waitMs = 0, ...options } = given;
  refuseTaken(options, TAKEN);
  const account = options.accountSid ?? OWN_ACCOUNT;
  // Given a client of one's own, the SDK leaves these to it.
  const { timeout, autoRetry, maxRetryDelay, maxRetries } = options;
  const httpClient = new BrakeRequestClient(front, waitMs, { timeout, autoRetry, maxRetryDelay, maxRetries });
  return twilio(account, front.token, { ...options, accountSid: account, httpClient });
}

/** Twilio's request client, with the judging, the sending and the settling done by the native module. */
export class BrakeRequestClient extends twilio.RequestClient {
  /** @internal */
  constructor(front: Front, waitMs: number, options: { [Name in keyof RequestClientOptions]: unknown }) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    super(Object.fromEntries(given) as RequestClientOptions);
    const axios = this.axios;
    // Below `autoRetry`: each of its attempts is a governed call, and joins what an earlier one left open.
    axios.defaults.adapter = async (config) => {
      const timeout = config.timeout ?? 0;
      const headers = Object.entries(config.headers.toJSON(true) as Record<string, string>);
      const sent = governed(front.keybrake, {
        method: (config.method ?? "get").toUpperCase(),
        url: axios.getUri(config),
        headers: headers
          .filter(([name]) => name.toLowerCase() !== "connection")
          .map(([name, value]) => [name, String(value)]),
        body: bytes(config.data),
        keyOrigin: "caller",
        run: front.run,
        waitMs,
        mostMs: Math.max(timeout, 0),
      });
      const ended = await sent.catch((error: unknown) => {
        if ((error as { name?: unknown } | null)?.name !== "TimeoutError") throw error;
        const { cause } = error as DOMException & { cause?: Error };
        const what = cause?.message ?? "the call to Twilio was not sent; no money moved";
        throw unanswered("ECONNABORTED", `timeout of ${timeout}ms exceeded: ${what}`);
      });
      return { config, request: null, statusText: "", ...answered(ended) };
    };
  }
}

/** A refusal is Twilio's own error shape, which the SDK throws as its `RestException`; only a lost reply is thrown here. */
function answered(ended: Ended): { status: number; headers: Record<string, string>; data: string } {
  switch (ended.kind) {
    case "reply":
    case "denied":
      return { status: ended.status, headers: Object.fromEntries(ended.headers), data: textOf(ended.body) };
    case "stream":
      throw new Error("a reply of Twilio's that is a stream");
    case "lost":
      throw unanswered(ended.neverSent ? "ECONNREFUSED" : "ECONNRESET", lostText(ended, "Twilio"));
  }
}

/** As axios says it, so that the SDK and its users recognise it. */
function unanswered(code: string, text: string): Error {
  return Object.assign(new VendorError(text), { code });
}

function bytes(data: unknown): Uint8Array {
  if (data === undefined || data === null) return new Uint8Array();
  if (typeof data === "string") return Buffer.from(data, "utf8");
  throw new ConfigError("a request body that is not text; nothing was sent");
}

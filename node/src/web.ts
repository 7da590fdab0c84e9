/** The Fetch API's requests, read for the engine, and what its answers are to a caller of `fetch`. */

import { type Ended, type Lost, lostText } from "./call.js";
import { VendorError } from "./errors.js";
import { type GovernedResponse, replyOf, streamed } from "./response.js";

export type { GovernedResponse } from "./response.js";

/** The longest request body that is taken, in bytes: 64 MiB. It has to be whole before it is judged. */
const MOST_BODY_BYTES = 64 * 1024 * 1024;

/** What may stand where `fetch` takes a request. */
export type Input = string | URL | Request;

/** A request as its caller made it, its body read. */
export interface WebCall {
  readonly method: string;
  /** As it was written, if it was text: whatever a URL parser would repair is for the judge to refuse. */
  readonly url: string;
  readonly headers: [string, string][];
  readonly body: Uint8Array;
  readonly signal: AbortSignal | null;
  readonly redirect: Request["redirect"];
  /** A `Request` that it was read from, kept: its signal follows its maker's only for as long as it is there. */
  readonly source: Request | null;
}

/**
 * Reads what `fetch` would take, by the platform's own rules; a call without a credential gets the token. A body in hand
 * is copied before this returns, as `fetch` does. Only the URL is not the platform's: a text is left as it is. A `URL`
 * or a `Request` holds no other than what it has parsed, which is then what is judged and sent.
 */
export async function webCall(token: string, input: Input, init: RequestInit | undefined): Promise<WebCall> {
  const call = plainCall(input, init ?? {}) ?? (await requested(input, init));
  const { headers } = call;
  if (!headers.some(([name]) => name === "authorization")) headers.push(["authorization", `Bearer ${token}`]);
  return call;
}

async function requested(input: Input, init: RequestInit | undefined): Promise<WebCall> {
  const request = new Request(input, init);
  const { method, redirect } = request;
  const url = typeof input === "string" ? input : request.url;
  request.signal.throwIfAborted();
  // Not the new one's, which would follow this one only until it is collected.
  const source = typeof input === "string" || input instanceof URL ? null : input;
  const signal = init?.signal === undefined ? (source?.signal ?? null) : init.signal;
  const body = inHand(init?.body) ?? (await read(request));
  // `Headers` joins two keys into one; apart again, the judge refuses them.
  const headers = [...request.headers].flatMap(([name, value]): [string, string][] =>
    name === "idempotency-key" ? value.split(", ").map((key) => [name, key]) : [[name, value]],
  );
  return { method, url, headers, body, signal, redirect, source };
}

const PLAIN_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
const PLAIN_FIELDS = ["method", "headers", "body", "signal"];
const FORM = "application/x-www-form-urlencoded;charset=UTF-8";

/** The call, where it is plain what a `Request` would make of it: making one costs more than deciding the call. */
function plainCall(input: Input, init: RequestInit): WebCall | null {
  const { method = "GET", headers: given, body, signal = null } = init;
  const fits =
    Object.getPrototypeOf(init) === Object.prototype &&
    (typeof input === "string" || input instanceof URL) &&
    PLAIN_METHODS.includes(method) &&
    Object.keys(init).every((field) => PLAIN_FIELDS.includes(field)) &&
    (signal === null || signal instanceof AbortSignal);
  const bytes = body === undefined || body === null ? NOTHING : inHand(body);
  if (!fits || !bytes || (bytes !== NOTHING && (method === "GET" || method === "HEAD"))) return null;
  const url = parsed(input);
  const headers = plainHeaders(given);
  if (!url || !headers) return null;
  signal?.throwIfAborted();
  const type = typeof body === "string" ? "text/plain;charset=UTF-8" : body instanceof URLSearchParams ? FORM : null;
  if (type && !headers.some(([name]) => name === "content-type")) headers.push(["content-type", type]);
  return { method, url, headers, body: bytes, signal, redirect: "follow", source: null };
}

const NOTHING = new Uint8Array();

/** An absolute URL without a password in it: a text as it is, a `URL` as it was parsed. */
function parsed(input: string | URL): string | null {
  try {
    const { href, username, password } = new URL(input);
    if (username || password) return null;
    return typeof input === "string" ? input : href;
  } catch {
    return null;
  }
}

const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const VALUE = /^[\x21-\x7e]+(?: [\x21-\x7e]+)*$/;

/** Headers of a plain object whose names and values every reader takes as they are. */
function plainHeaders(given: RequestInit["headers"]): [string, string][] | null {
  if (given === undefined) return [];
  if (given === null || Object.getPrototypeOf(given) !== Object.prototype) return null;
  const found: [string, string][] = [];
  for (const [name, value] of Object.entries(given as Record<string, unknown>)) {
    const lower = name.toLowerCase();
    const fits =
      NAME.test(name) &&
      typeof value === "string" &&
      VALUE.test(value) &&
      !(lower === "idempotency-key" && value.includes(","));
    if (!fits || found.some(([other]) => other === lower)) return null;
    found.push([lower, value]);
  }
  return found;
}

/** A body that needs no reading. */
function inHand(body: RequestInit["body"]): Uint8Array | null {
  if (typeof body === "string") return encoded(body);
  if (body instanceof URLSearchParams) return encoded(body.toString());
  if (!(body instanceof Uint8Array)) return null;
  if (body.byteLength > MOST_BODY_BYTES) throw tooLong();
  return Uint8Array.from(body);
}

function encoded(text: string): Uint8Array {
  // No text is shorter in UTF-8 than it has characters.
  const bytes = text.length > MOST_BODY_BYTES ? null : Buffer.from(text, "utf8");
  if (!bytes || bytes.byteLength > MOST_BODY_BYTES) throw tooLong();
  return bytes;
}

function tooLong(): TypeError {
  return new TypeError(`the request's body is longer than ${MOST_BODY_BYTES} bytes; nothing was sent`);
}

async function read({ body, signal }: Request): Promise<Uint8Array> {
  if (!body) return new Uint8Array();
  const reader = body.getReader();
  const give = () => void reader.cancel(signal.reason).catch(() => {});
  signal.addEventListener("abort", give, { once: true });
  try {
    const pieces: Uint8Array[] = [];
    let length = 0;
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      length += next.value.byteLength;
      if (length > MOST_BODY_BYTES) {
        give();
        throw tooLong();
      }
      pieces.push(next.value);
    }
    signal.throwIfAborted();
    return Buffer.concat(pieces);
  } finally {
    signal.removeEventListener("abort", give);
  }
}

/** How a call ended, as `fetch` says it: a response, or its `TypeError` when there was none. */
export function responseOf(ended: Ended, call: WebCall): GovernedResponse {
  if (ended.kind === "lost") throw unanswered(ended);
  const { status, info } = ended;
  if (status < 200 || status > 599) {
    throw unanswered({ kind: "lost", reason: `status ${status}`, neverSent: false, info });
  }
  // Redirects are never followed: what was judged is what is sent.
  if (call.redirect === "error" && ended.kind === "reply" && ended.status >= 300 && ended.status < 400) {
    throw new TypeError("fetch failed", { cause: new Error("unexpected redirect") });
  }
  if (ended.kind === "stream") return streamed(ended.body, call.signal, ended, call.url);
  return replyOf(ended, call.url, ended.kind === "denied" ? ended.denied : null);
}

/** What `fetch` throws when there is no reply. Sent again, the same call joins this one. */
function unanswered(lost: Lost): TypeError {
  return new TypeError("fetch failed", { cause: new VendorError(lostText(lost)) });
}

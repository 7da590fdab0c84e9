/** The Fetch API's requests and responses: read for the engine, made of its answers. */

import { STATUS_CODES } from "node:http";
import { type Ended, type Lost, lostText, type Headers as Pairs } from "./call.js";
import { type Denied, VendorError } from "./errors.js";

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
  readonly signal: AbortSignal;
  readonly redirect: Request["redirect"];
}

/**
 * Reads what `fetch` would take, by the platform's own rules; a call without a credential gets the token. A body in hand
 * is copied before this returns, as `fetch` does. Only the URL is not the platform's: a text is left as it is. A `URL`
 * or a `Request` holds no other than what it has parsed, which is then what is judged and sent.
 */
export async function webCall(token: string, input: Input, init: RequestInit | undefined): Promise<WebCall> {
  const request = new Request(input, init);
  const { method, signal, redirect } = request;
  const url = typeof input === "string" ? input : request.url;
  signal.throwIfAborted();
  const body = inHand(init?.body) ?? (await read(request));
  // `Headers` joins two keys into one; apart again, the judge refuses them.
  const headers = [...request.headers].flatMap(([name, value]): [string, string][] =>
    name === "idempotency-key" ? value.split(", ").map((key) => [name, key]) : [[name, value]],
  );
  if (!request.headers.has("authorization")) headers.push(["authorization", `Bearer ${token}`]);
  return { method, url, headers, body, signal, redirect };
}

/** A body that needs no reading. */
function inHand(body: RequestInit["body"]): Uint8Array | null {
  if (typeof body === "string") return Buffer.from(body, "utf8");
  if (body instanceof URLSearchParams) return Buffer.from(body.toString(), "utf8");
  if (body instanceof Uint8Array) return Uint8Array.from(body);
  return null;
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
        throw new TypeError(`the request's body is longer than ${MOST_BODY_BYTES} bytes; nothing was sent`);
      }
      pieces.push(next.value);
    }
    signal.throwIfAborted();
    return Buffer.concat(pieces);
  } finally {
    signal.removeEventListener("abort", give);
  }
}

/** The response to a governed call. `denied(response)` recognises a refusal without reading its body. */
export interface GovernedResponse extends Response {
  /** The refusal, if the call was refused. */
  readonly keybrakeDenied: Denied | null;
}

/** A response with a head of ours, for a URL. */
function response(body: Body, { status, headers }: Head, url: string, denied: Denied | null): GovernedResponse {
  const empty = status === 204 || status === 205 || status === 304;
  const init = { status, statusText: STATUS_CODES[status] ?? "", headers: headers as [string, string][] };
  return dressed(new Response(empty ? null : body, init), url, denied);
}

/** With what a `Response` that was not fetched lacks, also on its clones. */
function dressed(response: Response, url: string, denied: Denied | null): GovernedResponse {
  const clone = () => dressed(Response.prototype.clone.call(response), url, denied);
  return Object.defineProperties(response, {
    url: { value: url },
    keybrakeDenied: { value: denied },
    clone: { value: clone },
  }) as GovernedResponse;
}

type Body = ReadableStream<Uint8Array> | Uint8Array<ArrayBuffer>;
type Head = { readonly status: number; readonly headers: Pairs };

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
  const body = ended.kind === "stream" ? ended.body.web(call.signal) : new Uint8Array(ended.body);
  return response(body, ended, call.url, ended.kind === "denied" ? ended.denied : null);
}

/** What `fetch` throws when there is no reply. Sent again, the same call joins this one. */
function unanswered(lost: Lost): TypeError {
  return new TypeError("fetch failed", { cause: new VendorError(lostText(lost)) });
}

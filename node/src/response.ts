/**
 * The responses of the governed `fetch`. On Node, one whose body has arrived is a `Response` that makes the platform's
 * own, with its streams, only when it is asked for what needs them: that costs more than deciding the call.
 *
 * It answers through its getters and methods. What borrows the platform's (`Response.prototype.text.call(response)`)
 * sees an empty one. The servers of Bun and Deno read that far inside, so there it is the platform's own from the start.
 */

import { STATUS_CODES } from "node:http";
import { type Body, type Document, type Headers as Pairs, textOf } from "./call.js";
import type { Denied } from "./errors.js";

/** The response to a governed call. `denied(response)` recognises a refusal without reading its body. */
export interface GovernedResponse extends Response {
  /** The refusal, if the call was refused. */
  readonly keybrakeDenied: Denied | null;
}

/** How a reply begins. */
interface Head {
  readonly status: number;
  readonly headers: Pairs;
}

/** The response of a reply whose body has arrived. */
export function replyOf(reply: Head & { readonly body: Body }, url: string, denied: Denied | null): GovernedResponse {
  if (!ON_NODE) return dressed(platforms(bytesOf(reply.body), reply), url, denied);
  whole ??= wholeResponse();
  return new whole(reply, url, denied);
}

const ON_NODE = !process.versions.bun && !process.versions.deno;

/** The response of a reply whose body arrives as it is read; the signal gives the rest up. */
export function streamed(body: Document, signal: AbortSignal | null, reply: Head, url: string): GovernedResponse {
  const unread = bodiless(reply.status);
  // Nobody can read it, so its end is heard of here.
  if (unread) void drained(body).catch(() => {});
  return dressed(platforms(unread ? null : body.web(signal), reply), url, null);
}

async function drained(body: Document): Promise<void> {
  for await (const _ of body);
}

function bytesOf(body: Body): Uint8Array<ArrayBuffer> {
  return typeof body === "string" ? new TextEncoder().encode(body) : new Uint8Array(body);
}

function platforms(body: ReadableStream<Uint8Array> | Uint8Array<ArrayBuffer> | null, reply: Head): Response {
  const { status, headers } = reply;
  const init = { status, statusText: STATUS_CODES[status] ?? "", headers: headers as [string, string][] };
  return new Response(bodiless(status) ? null : body, init);
}

function bodiless(status: number): boolean {
  return status === 204 || status === 205 || status === 304;
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

type Whole = new (reply: Head & { readonly body: Body }, url: string, denied: Denied | null) => GovernedResponse;

let whole: Whole | undefined;

/** Made on first use: where there is no `Response`, the rest of the package still loads. */
function wholeResponse(): Whole {
  // Its fields are declared as properties, and are accessors.
  const Platforms = Response as unknown as new (body: null, init: ResponseInit) => object;
  const made = class extends Platforms {
    readonly #reply: Head & { readonly body: Body };
    readonly #url: string;
    readonly keybrakeDenied: Denied | null;
    #headers: Headers | null = null;
    /** The platform's own, once it was needed: from then on the body is its. */
    #made: Response | null = null;
    /** Whether the body was read here. */
    #read = false;

    constructor(reply: Head & { readonly body: Body }, url: string, denied: Denied | null) {
      super(null, { status: reply.status, statusText: STATUS_CODES[reply.status] ?? "" });
      this.#reply = reply;
      this.#url = url;
      this.keybrakeDenied = denied;
    }

    get url(): string {
      return this.#url;
    }

    get headers(): Headers {
      this.#headers ??= new Headers(this.#reply.headers as [string, string][]);
      return this.#headers;
    }

    get body(): Response["body"] {
      return this.#platforms().body;
    }

    get bodyUsed(): boolean {
      return this.#made?.bodyUsed ?? this.#read;
    }

    async text(): Promise<string> {
      return this.#readable() ? unmarked(this.#take()) : this.#platforms().text();
    }

    async json(): Promise<unknown> {
      return this.#readable() ? JSON.parse(unmarked(this.#take())) : this.#platforms().json();
    }

    arrayBuffer(): Promise<ArrayBuffer> {
      return this.#platforms().arrayBuffer();
    }

    blob(): Promise<Blob> {
      return this.#platforms().blob();
    }

    formData(): Promise<FormData> {
      return this.#platforms().formData();
    }

    /** Newer platforms have it. */
    bytes(): Promise<Uint8Array<ArrayBuffer>> {
      return this.arrayBuffer().then((bytes) => new Uint8Array(bytes));
    }

    clone(): GovernedResponse {
      return dressed(this.#platforms().clone(), this.#url, this.keybrakeDenied);
    }

    #readable(): boolean {
      return !this.#made && !this.#read && !bodiless(this.#reply.status);
    }

    #take(): string {
      this.#read = true;
      return textOf(this.#reply.body);
    }

    #platforms(): Response {
      if (!this.#made) {
        const { status, body } = this.#reply;
        this.#made = platforms(bytesOf(body), { status, headers: [...this.headers] });
        // What was read is gone: it says so in the platform's own words.
        if (this.#read) this.#made.arrayBuffer().catch(() => {});
      }
      return this.#made;
    }
  };
  return made as unknown as Whole;
}

/** Text without a byte order mark, as a `Response` decodes it. */
function unmarked(text: string): string {
  return text.startsWith("\ufeff") ? text.slice(1) : text;
}

/**
 * Resend through Keybrake: a real `Resend` whose every call is governed by the vault key it holds.
 *
 * The token stands where the API key stood. Like the SDK's own, its calls never throw: a refusal, a lost reply and a
 * mistake in the settings are `{ data: null, error }`.
 */

import { Resend, type ResendOptions as SdkOptions } from "resend";
import { type Body, type Ended, governed, lostText, textOf } from "./call.js";
import { argumentsOf, type Front, refuseTaken } from "./front.js";
import type { Agent, Keybrake } from "./keybrake.js";
import type { Key, Run } from "./run.js";

/** The SDK's own options, without what Keybrake's transport replaces, and `waitMs`. */
export interface ResendOptions extends Omit<SdkOptions, "baseUrl"> {
  /** How long a call may wait while only open holds stand in its way; 0 by default. */
  waitMs?: number;
}

const HOST = "https://api.resend.com";

/** A real `Resend` that spends by a run, or by a vault key: `createResend(run)`, `createResend(keybrake, token)`. */
export function createResend(run: Run, options?: ResendOptions): Resend;
export function createResend(keybrake: Keybrake | Agent, token: string | Key, options?: ResendOptions): Resend;
export function createResend(
  from: Run | Keybrake | Agent,
  second?: string | Key | ResendOptions,
  third?: ResendOptions,
): Resend {
  const { front, options: given } = argumentsOf(from, second, third);
  const { waitMs = 0, ...options } = given;
  refuseTaken(options, ["baseUrl"]);
  return new BrakeResend(front, waitMs, options);
}

/** What the SDK hands to the one method that all its calls go through. */
interface Init {
  readonly method?: string;
  readonly headers?: Headers;
  readonly body?: string | FormData;
  readonly signal?: AbortSignal;
}

type Answer<T> = Awaited<ReturnType<typeof Resend.prototype.fetchRequest<T>>>;

/** Resend's client, with the judging, the sending and the settling done by the native module. */
export class BrakeResend extends Resend {
  readonly #front: Front;
  readonly #waitMs: number;

  /** @internal */
  constructor(front: Front, waitMs: number, options: SdkOptions) {
    super(front.token, { ...options, baseUrl: HOST });
    this.#front = front;
    this.#waitMs = waitMs;
  }

  /** One governed call. What it answers is what the SDK would. */
  override async fetchRequest<T>(path: string, options: Init = {}): Promise<Answer<T>> {
    const answer = await this.#governed<T>(path, options);
    if (answer.error) this.#log(answer.error, path);
    return answer;
  }

  async #governed<T>(path: string, { method = "GET", headers, body, signal }: Init): Promise<Answer<T>> {
    try {
      const sent = [...(headers ?? new Headers())] as [string, string][];
      // A form (what the SDK uploads) is a body that the engine refuses; it is packed here so that it says why.
      const packed = body instanceof FormData ? new Response(body) : null;
      const type = packed?.headers.get("content-type");
      if (type) sent.push(["content-type", type]);
      const ended = await governed(this.#front.keybrake, {
        method,
        // As text, so that no dot segment is resolved before it is judged.
        url: `${HOST}${path}`,
        headers: sent,
        body: packed
          ? new Uint8Array(await packed.arrayBuffer())
          : Buffer.from((body as string | undefined) ?? "", "utf8"),
        keyOrigin: "caller",
        run: this.#front.run,
        waitMs: this.#waitMs,
        signal: signal ?? null,
      });
      return answered<T>(ended);
    } catch (error) {
      const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
      return failed(signal?.aborted ? `${text}; the call may have taken effect, so its cost stays held` : text);
    }
  }

  /** With the SDK's own switch for it. */
  #log(error: object, path: string): void {
    (this as unknown as { logError?(error: object, path: string): void }).logError?.(error, path);
  }
}

function answered<T>(ended: Ended): Answer<T> {
  if (ended.kind === "stream") return failed("a reply of Resend's that is a stream");
  if (ended.kind === "lost") return failed(lostText(ended, "Resend"));
  const headers = Object.fromEntries(ended.headers);
  const body = objectIn(ended.body);
  if (body === null)
    return failed(`Resend answered ${ended.status} with what is no JSON object`, ended.status, headers);
  const fine = ended.status >= 200 && ended.status < 300;
  // Beside what JSON could say, so that nobody who writes JSON can say it.
  if (ended.kind === "denied") Object.defineProperty(body, "keybrakeDenied", { value: ended.denied });
  return (fine ? { data: body as T, error: null, headers } : { data: null, error: body, headers }) as Answer<T>;
}

function objectIn(body: Body): object | null {
  try {
    const found: unknown = JSON.parse(textOf(body));
    return typeof found === "object" ? found : null;
  } catch {
    return null;
  }
}

function failed<T>(
  message: string,
  statusCode: number | null = null,
  headers: Record<string, string> | null = null,
): Answer<T> {
  return { data: null, error: { name: "application_error", statusCode, message }, headers } as Answer<T>;
}

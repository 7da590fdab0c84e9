/** One governed call, the same for every adapter: what is handed to the engine, and what its answer means. */

import { type Here, here, NOWHERE } from "./context.js";
import { type Answer, type Request, type Stream, timedOut } from "./engine.js";
import { ConfigError, type Denial, Denied, fromNative, KeybrakeError, translated, VendorError } from "./errors.js";
import type { Keybrake } from "./keybrake.js";
import { usdFromMicros } from "./money.js";
import native from "./native.cjs";
import type { Run } from "./run.js";
import { type BudgetView, budgetFrom, type CallInfo, type Verdict } from "./types.js";

/** Who made the idempotency key on a call: it tells transport attempts apart (`generated`), or spends (`caller`). */
export type KeyOrigin = "generated" | "caller" | "unknown";

/** A call as a vendor's SDK made it. The vault key stands where the vendor's secret stood. */
export interface Outgoing {
  readonly method: string;
  readonly url: string;
  readonly headers: Iterable<readonly [string, string]>;
  readonly body: Uint8Array;
  readonly keyOrigin: KeyOrigin;
  /** The run that the client was made for; else the current one, if the call carries its token. */
  readonly run?: Run | null;
  readonly waitMs?: number;
  readonly signal?: AbortSignal | null;
  /** After so long it is given up, as by a signal of `AbortSignal.timeout`, for less; 0, the default, is never. */
  readonly mostMs?: number;
  /** Whether a document may be left to be read as it arrives. */
  readonly stream?: boolean;
}

/** How it ended. A refusal and a lost reply are answers here; each adapter makes its SDK's own error of them. */
export type Ended =
  | {
      readonly kind: "reply";
      readonly status: number;
      readonly headers: Headers;
      readonly body: Body;
      readonly info: CallInfo;
    }
  | {
      readonly kind: "stream";
      readonly status: number;
      readonly headers: Headers;
      readonly body: Document;
      readonly info: CallInfo;
    }
  | {
      readonly kind: "denied";
      readonly status: number;
      readonly headers: Headers;
      /** The refusal in the shape of the vendor's own errors. */
      readonly body: Body;
      readonly denied: Denied;
      readonly info: CallInfo;
    }
  | Lost;

/** No reply. Unless it certainly was never sent, it may have taken effect. */
export interface Lost {
  readonly kind: "lost";
  readonly reason: string;
  readonly neverSent: boolean;
  readonly info: CallInfo;
}

/** A body that is read: text where it was found to be UTF-8, else bytes. */
export type Body = string | Buffer;

/** The text of a body. */
export function textOf(body: Body): string {
  return typeof body === "string" ? body : body.toString("utf8");
}

/** Names in lower case and values, in order. */
export type Headers = readonly (readonly [string, string])[];

/** What the engine notes of a call. */
interface Note {
  call_id: string;
  operation: string;
  state: string | null;
  cost_micros: number;
  replayed: boolean;
  tightest: BudgetView | null;
}

/** From this share of the tightest cap on, the `budget` hook fires: four fifths. */
const WARNING = { part: 4n, of: 5n };

/** Makes a governed call. Rejects only when nothing was decided: misconfiguration, or the caller gave it up. */
export async function governed(keybrake: Keybrake, call: Outgoing): Promise<Ended> {
  const { run, request } = prepared(keybrake, call);
  const refusal = run?.closed ? refused(call.url, run) : null;
  const answer = refusal ?? (await keybrake.engine.send(request, call.stream ?? false));
  const outcome = ended(keybrake, run, answer);
  // Given up by its caller: noted by now, and said in the words of the caller's own signal.
  if (outcome.kind === "lost" && !outcome.neverSent) {
    call.signal?.throwIfAborted();
    if (answer.overdue) throw timedOut(new VendorError(lostText(outcome)));
  }
  return outcome;
}

/** A reply that never came, in words: whether money may have moved, and what then. */
export function lostText({ reason, neverSent, info }: Lost, vendor = "the vendor"): string {
  return neverSent
    ? `the call to ${vendor} was not sent (${reason}); no money moved`
    : `no reply from ${vendor} (${reason}); the call may have taken effect, so its amount stays held until that is ` +
        `known (call ${info.callId})`;
}

/** A key on a bare call is its caller's. stripe-node makes one for every write: it tells attempts apart, not spends. */
export function keyOriginOf(headers: Iterable<readonly [string, string]>): KeyOrigin {
  for (const [name, value] of headers) {
    if (name.toLowerCase() === "idempotency-key")
      return value.startsWith("stripe-node-retry-") ? "generated" : "caller";
  }
  return "generated";
}

/** Judges a call that its caller sends: a permit, or how it ended already. */
export async function permitted(keybrake: Keybrake, call: Outgoing): Promise<Ended | Permitted> {
  const { run, request } = prepared(keybrake, call);
  const refusal = run?.closed ? refused(call.url, run) : null;
  if (refusal) return ended(keybrake, run, refusal);
  const verdict = await keybrake.engine.authorize(request);
  const answer = verdict.takeAnswer();
  if (answer) return ended(keybrake, run, answer);
  const permit = verdict.takePermit();
  if (!permit) throw new KeybrakeError("the native module decided nothing");
  const settled = async (settling: Promise<Answer>) => ended(keybrake, run, await fromPromise(settling));
  return { kind: "permit", permit, settled };
}

/** A permit of the native module, and what makes an outcome of what it answers. */
export interface Permitted {
  readonly kind: "permit";
  readonly permit: native.Permit;
  readonly settled: (settling: Promise<Answer>) => Promise<Ended>;
}

function prepared(keybrake: Keybrake, call: Outgoing): { run: Run | null; request: Request } {
  guardTests(keybrake, call.url);
  const around = here();
  const headers: string[] = [];
  for (const [name, value] of call.headers) headers.push(name, value);
  const run = call.run ?? (around.run && carries(headers, around.run.token) ? around.run : null);
  const request = {
    method: call.method,
    url: call.url,
    headers,
    body: call.body,
    context: attribution(around, run, call.keyOrigin),
    waitMs: call.waitMs ?? 0,
    signal: call.signal ?? null,
    mostMs: call.mostMs ?? 0,
  };
  return { run, request };
}

function ended(keybrake: Keybrake, run: Run | null, answer: Answer): Ended {
  const headers = pairs(answer.headers);
  const { kind, status } = answer;
  const note = JSON.parse(answer.record) as Note;
  const stream = answer.takeStream();
  if (stream) {
    const info = infoOf(note, answer, null);
    return { kind: "stream", status, headers, body: new Document(keybrake, run, answer, stream), info };
  }
  const denial = answer.denial === null ? null : (JSON.parse(answer.denial) as Denial);
  const info = infoOf(note, answer, denial);
  run?.note(info);
  keybrake.hooks.fire("call", info);
  if (denial) {
    const denied = tellDenied(keybrake, new Denied(denial, status), info);
    return { kind: "denied", status, headers, body: answer.takeBody(), denied, info };
  }
  if (kind === "lost") {
    if (!answer.neverSent) keybrake.hooks.fire("unknown", info);
    return { kind: "lost", reason: answer.reason ?? "no reply", neverSent: answer.neverSent, info };
  }
  told(keybrake, note, info);
  return { kind: "reply", status, headers, body: answer.takeBody(), info };
}

/** The body of a document as it arrives. Read it to its end or close it: given up, the call is noted as `unknown`. */
export class Document {
  readonly #keybrake: Keybrake;
  readonly #run: Run | null;
  readonly #answer: Answer;
  readonly #stream: Stream;
  #controller: ReadableByteStreamController | null = null;
  #over = false;

  /** @internal */
  constructor(keybrake: Keybrake, run: Run | null, answer: Answer, stream: Stream) {
    this.#keybrake = keybrake;
    this.#run = run;
    this.#answer = answer;
    this.#stream = stream;
  }

  /** The next piece; `null` at the end. Throws `Denied` when a hard stop broke it off, else an `Error` that says why. */
  async read(): Promise<Buffer | null> {
    const piece = await fromPromise(this.#stream.read());
    if (piece === null && !this.#over) this.#end();
    return piece;
  }

  /** Gives the rest up, also while a piece is waited for. Safe to repeat. */
  async close(): Promise<void> {
    if (this.#over) return;
    this.#over = true;
    await fromPromise(this.#stream.close());
    this.#account();
  }

  /** As the byte stream of a web response. Cancelling it, or the signal, gives the rest up. */
  web(signal: AbortSignal | null = null): ReadableStream<Uint8Array> {
    let stop = () => {};
    // Weak: a signal may live as long as the process, and a document that nobody holds any more must not.
    const weak = new WeakRef(this);
    return new ReadableStream({
      type: "bytes",
      start: (controller) => {
        this.#controller = controller;
        const give = () => {
          const document = weak.deref();
          if (document) document.#giveUp(signal?.reason);
        };
        stop = () => signal?.removeEventListener("abort", give);
        signal?.addEventListener("abort", give, { once: true });
        if (signal?.aborted) give();
      },
      pull: async (controller) => {
        try {
          const piece = await this.read();
          if (signal?.aborted) return;
          if (piece) return controller.enqueue(new Uint8Array(piece));
        } catch (error) {
          stop();
          throw error;
        }
        stop();
        controller.close();
        controller.byobRequest?.respond(0);
      },
      cancel: () => {
        stop();
        return this.close();
      },
    });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    try {
      for (let piece = await this.read(); piece !== null; piece = await this.read()) yield piece;
    } finally {
      await this.close();
    }
  }

  #giveUp(reason: unknown): void {
    this.#controller?.error(reason);
    this.close().catch(() => {});
  }

  #end(): void {
    this.#over = true;
    const { denial, reason } = this.#stream;
    const refusal = denial === null ? null : new Denied(JSON.parse(denial) as Denial, 403);
    const info = this.#account(refusal);
    if (refusal) throw refusal;
    if (reason !== null) throw new Error(`the reply broke off (${reason}); ask for it again (call ${info.callId})`);
  }

  #account(refusal: Denied | null = null): CallInfo {
    const note = JSON.parse(this.#stream.record) as Note;
    const info = infoOf(note, this.#answer, refusal);
    this.#run?.note(info);
    this.#keybrake.hooks.fire("call", info);
    if (refusal) tellDenied(this.#keybrake, refusal, info);
    else if (info.verdict === "unknown") this.#keybrake.hooks.fire("unknown", info);
    else told(this.#keybrake, note, info);
    return info;
  }
}

function fromPromise<T>(work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    throw fromNative(error);
  });
}

function tellDenied(keybrake: Keybrake, denied: Denied, info: CallInfo): Denied {
  keybrake.hooks.fire("denied", denied);
  if (denied.aborted) keybrake.hooks.fire("unknown", info);
  if (denied.code === "stopped") keybrake.hooks.fire("stopped", denied);
  return denied;
}

function told(keybrake: Keybrake, { tightest }: Note, info: CallInfo): void {
  if (info.replayed) keybrake.hooks.fire("replayed", info);
  if (!tightest || !keybrake.hooks.heard("budget")) return;
  const taken = BigInt(tightest.used) + BigInt(tightest.held);
  if (taken * WARNING.of >= BigInt(tightest.cap) * WARNING.part) keybrake.hooks.fire("budget", budgetFrom(tightest));
}

function infoOf(note: Note, answer: Answer, denial: Pick<Denial, "code" | "aborted"> | null): CallInfo {
  const lost = answer.kind === "lost" && !answer.neverSent;
  let verdict: Verdict = "allowed";
  if (denial) verdict = denial.aborted ? "unknown" : "denied";
  else if (note.replayed) verdict = "replayed";
  else if (lost || note.state === "unknown") verdict = "unknown";
  return {
    callId: note.call_id,
    operation: note.operation,
    verdict,
    cost: verdict === "unknown" ? null : usdFromMicros(note.cost_micros),
    replayed: note.replayed,
    status: answer.status || null,
    code: denial?.code ?? null,
  };
}

/** Attribution of a call. A step belongs to the run it was named in, and counts for no other. */
function attribution(around: Here, run: Run | null, keyOrigin: KeyOrigin): string {
  const mine = around.run === run ? around : NOWHERE;
  const { step, item, context } = mine;
  return JSON.stringify({ run: run?.id ?? null, step, item, key_origin: keyOrigin, context });
}

/** A call through the handle of a run that was closed. */
function refused(url: string, run: Run): Answer | null {
  return translated(() => native.refused(url, "key_expired", `the run ${run.id ?? run.keyId} is closed`));
}

/** Whether the call's credential is this token; Twilio's is `Basic`, where the token is the password. */
function carries(headers: readonly string[], token: string): boolean {
  return pairs(headers).some(([name, value]) => {
    if (name.toLowerCase() !== "authorization") return false;
    const basic = /^basic +(\S+)$/i.exec(value)?.[1];
    return (basic === undefined ? value : Buffer.from(basic, "base64").toString("utf8")).includes(token);
  });
}

/** Names and values that stand in turn. */
export function pairs(flat: readonly string[]): Headers {
  const found: [string, string][] = [];
  for (let i = 0; i + 1 < flat.length; i += 2) found.push([flat[i] as string, flat[i + 1] as string]);
  return found;
}

/** In a test runner, no call leaves the machine by accident. */
function guardTests(keybrake: Keybrake, url: string): void {
  if (!keybrake.inTests || keybrake.allowLiveInTests) return;
  const { hostname } = new URL(url);
  if (["127.0.0.1", "[::1]", "localhost"].includes(hostname)) return;
  if ([...keybrake.engine.loopbackVendors].some((vendor) => hostname.endsWith(`.${vendor}.com`))) return;
  throw new ConfigError(
    `a test would call ${hostname}: give the Keybrake a simulator (\`keybrake/testing\`), or allowLiveInTests: true`,
  );
}

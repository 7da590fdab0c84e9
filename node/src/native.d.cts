// The native module. Conversions only; what users touch is src.

/** The engine behind one `Keybrake`. Its ledger is opened on first use. Rejects with `Error("kind: text")`. */
export declare class Engine {
  /** `ended` is told how each call of `send` ended. */
  constructor(settings: string, ended: Ended);
  open(): Promise<void>;
  ask(what: string, args: string): Promise<string>;
  /** One governed call; `ended` is told under this number. `headers` as lines, or as a list. 0 ms is no limit. */
  send(
    number: number,
    method: string,
    url: string,
    headers: string | string[],
    body: Uint8Array,
    context: string,
    waitMs: number,
    mostMs: number,
    stream: boolean,
    cancel?: Cancel | null,
  ): void;
  authorize(
    method: string,
    url: string,
    headers: string[],
    body: Uint8Array,
    context: string,
    waitMs: number,
    cancel?: Cancel | null,
  ): Promise<Verdict>;
  close(): Promise<void>;
  closeNow(): void;
}

/**
 * How a call ended: its number; why it failed (`kind: text`), or null; whether it was given up because its time was
 * over; then the answer. `head` has names in lower case and values in turn, a line each; a body is text where it is UTF-8
 * and short, and null where it is empty.
 */
export type Ended = (
  number: number,
  failure: string | null,
  overdue: boolean,
  kind: Answer["kind"],
  status: number,
  head: string,
  body: string | Buffer | null,
  record: string,
  denial: string | null,
  reason: string | null,
  neverSent: boolean,
  stream: Stream | null,
) => void;

/** A way to give a call up: what an `AbortSignal` becomes. */
export declare class Cancel {
  cancel(): void;
}

/** How a governed call ended. */
export declare class Answer {
  private constructor();
  readonly kind: "reply" | "denied" | "lost" | "stream";
  readonly status: number;
  /** Names in lower case and values, in turn. */
  readonly headers: string[];
  takeBody(): Buffer;
  readonly record: string;
  readonly denial: string | null;
  readonly reason: string | null;
  readonly neverSent: boolean;
  takeStream(): Stream | null;
}

/** The body of a reply that is handed on as it arrives. */
export declare class Stream {
  private constructor();
  read(): Promise<Buffer | null>;
  close(): Promise<void>;
  readonly record: string;
  readonly reason: string | null;
  readonly denial: string | null;
}

/** What was decided: a permit, or the answer that stands in for a reply. */
export declare class Verdict {
  private constructor();
  takePermit(): Permit | null;
  takeAnswer(): Answer | null;
}

/** Permission to send one attempt. Garbage-collected without an outcome, its hold stands. */
export declare class Permit {
  private constructor();
  readonly callId: string;
  /** Micro-USD in decimal. */
  readonly micros: string;
  /** What to send, once; the vendor's real secret is among the headers, which are names and values in turn. */
  handOut(sending: boolean): { method: string; url: string; headers: string[]; body: Buffer };
  /** Whether it was handed out: then it may have left. */
  readonly handedOut: boolean;
  /** Whether its time was over before it was handed out. */
  readonly expired: boolean;
  /** How long it may still be sent; 0 when that is over. */
  readonly sendWithinMs: number;
  /** The longest the request may take. */
  readonly requestMs: number;
  /** `sent` by `send`, else it is the word of whoever sent it. Throws for what is no reply. */
  replied(status: number, headers: string[], body: Uint8Array, sent: boolean): Promise<Answer>;
  lost(reason: string): Promise<Answer>;
  neverSent(): Promise<Answer>;
}

/** A running simulator on 127.0.0.1. */
export declare class Simulator {
  constructor(vendor: string, port: number);
  readonly secret: string;
  readonly url: string;
  stop(): void;
}

export declare function version(): string;
export declare function refused(url: string, code: string, message: string): Answer | null;
export declare function forModel(denial: string): string;
export declare function stepKey(run: string, step: string): string;
export declare function contentKey(fields: string): string;
export declare function itemKey(run: string, item: string): string;
export declare function operations(vendor: string): string[];
export declare function cli(args: string[]): number;
export declare function panic(): void;

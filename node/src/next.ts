/**
 * Next.js: a vault key for the time of one request.
 *
 *     export const POST = withVaultKey(
 *       async (req) => ({ policy, run: "chat_17", narrow: { run_usd_cap: 25 } }),
 *       async (req, { run }) => new Response(stream),
 *     );
 *
 * The key ends with the response: when its body has been sent, fails or is cancelled, and in any case after
 * `maxDuration` seconds. A finish callback is not asked, since it does not come when the user goes away.
 */

import { ConfigError, Denied } from "./errors.js";
import { defaultKeybrake } from "./index.js";
import type { Keybrake, OpenOptions } from "./keybrake.js";
import { ended, type Run } from "./run.js";

/** How the run of a request is opened: of a policy (its key ends with the request), or of a token that exists. */
export interface VaultKeyOptions extends Omit<OpenOptions, "expiresIn"> {
  /** Whose ledger and secrets; else the one made from the environment. */
  keybrake?: Keybrake;
  /**
   * After so many whole seconds the key is over, whatever became of the response: 1 to 86,400, 900 by default. A
   * policy that states `expires_in` or `expires_at` itself is left at that.
   */
  maxDuration?: number;
}

/** The options of every request, or what makes them of what Next.js hands over. */
export type VaultKeyFor<A extends unknown[]> =
  | VaultKeyOptions
  | ((...args: A) => VaultKeyOptions | Promise<VaultKeyOptions>);

/** What a handler gets on top of what Next.js gives. */
export interface Granted {
  readonly run: Run;
}

/** A Route Handler that gets a run, together with its `params`. */
export function withVaultKey<R extends Request = Request, C extends object = object>(
  options: VaultKeyFor<[request: R, context: C]>,
  handler: (request: R, context: C & Granted) => Response | Promise<Response>,
): (request: R, context?: C) => Promise<Response>;
/**
 * A Server Action that gets `{ run }` after its own arguments. A stream that it returns keeps the run until its end.
 * Declare its parameters one by one, without defaults: `{ run }` is the last of them, whatever a browser sends besides.
 */
export function withVaultKey<A extends unknown[], T>(
  options: VaultKeyFor<A>,
  action: (...args: [...A, Granted]) => T | Promise<T>,
): (...args: A) => Promise<T>;
export function withVaultKey(
  options: VaultKeyOptions | ((...args: never[]) => VaultKeyOptions | Promise<VaultKeyOptions>),
  handler: (...args: never[]) => unknown,
): (...args: never[]) => Promise<unknown> {
  return async (...args) => {
    const run = await opened(typeof options === "function" ? await options(...args) : options).catch((error: unknown) =>
      refusedTo(args[0], error),
    );
    if (run instanceof Response) return run;
    try {
      const answer = await run.within(() => handler(...granted(args, handler.length, run)));
      return await untilRead(answer, run, args[0]);
    } catch (error) {
      // Also what Next.js throws to redirect.
      await ended(run);
      throw error;
    }
  };
}

/** The longest a request's key may live, in seconds, unless told otherwise. */
const MAX_DURATION = 900;
const DAY = 86_400;

async function opened(options: VaultKeyOptions): Promise<Run> {
  const { keybrake = defaultKeybrake(), maxDuration = MAX_DURATION, ...opening } = options;
  if (!Number.isInteger(maxDuration) || maxDuration < 1 || maxDuration > DAY) {
    throw new ConfigError(`maxDuration ${String(maxDuration)}: whole seconds from 1 to ${DAY}`);
  }
  const issued = opening.policy !== undefined && opening.token === undefined;
  const { policy } = opening;
  const states = typeof policy === "object" && (policy.expires_in !== undefined || policy.expires_at !== undefined);
  const expiry = issued && !states ? { expiresIn: `${maxDuration}s` } : {};
  const run = await keybrake.open({ ...opening, ...expiry });
  run.closeAfter(maxDuration * 1000);
  return run;
}

/**
 * What a request is answered while no key is issued, because somebody stopped what it belongs to: our words alone, since
 * a browser reads them. An action throws it.
 */
function refusedTo(request: unknown, error: unknown): Response {
  if (!(error instanceof Denied) || !((request as unknown) instanceof Request)) throw error;
  return Response.json({ error: { code: error.code, message: error.forModel() } }, { status: error.status });
}

/**
 * A request's context is one object. A Server Action's arguments are what a browser says, as many as it likes: those
 * that the action declares are handed on, and the run stands behind them, where none of them can stand.
 */
function granted(args: unknown[], declared: number, run: Run): never[] {
  const [request, context] = args;
  if (request instanceof Request) return [request, { ...(context as object | undefined), run }] as never[];
  const own = Array.from({ length: Math.max(declared - 1, 0) }, (_, index) => args[index]);
  return [...own, { run }] as never[];
}

/** The answer, and the run's end when the answer has been read, if it is one that is read bit by bit. */
async function untilRead(answer: unknown, run: Run, request: unknown): Promise<unknown> {
  if (answer instanceof ReadableStream) return closing(answer, run);
  if (isStream(answer)) return closingEach(answer, run);
  if (!(answer instanceof Response) || answer.body === null) {
    await ended(run);
    return answer;
  }
  const { status, statusText, headers, body } = answer;
  const asked = request instanceof Request ? request : null;
  if (asked?.method === "HEAD" || asked?.signal.aborted) {
    // Nobody will read the body.
    await ended(run);
    await body.cancel().catch(() => {});
    return new Response(null, { status, statusText, headers });
  }
  return new Response(closing(body, run, asked?.signal), { status, statusText, headers });
}

/** The same stream; the run ends when it ends, fails or is cancelled, or when `gone` says that nobody reads it. */
function closing<T>(body: ReadableStream<T>, run: Run, gone?: AbortSignal): ReadableStream<T> {
  const reader = body.getReader();
  let leave = () => {};
  const over = async () => {
    leave();
    await ended(run);
  };
  return new ReadableStream<T>(
    {
      start(controller) {
        if (!gone) return;
        const give = () => {
          controller.error(gone.reason);
          void over();
          reader.cancel(gone.reason).catch(() => {});
        };
        gone.addEventListener("abort", give, { once: true });
        leave = () => gone.removeEventListener("abort", give);
      },
      async pull(controller) {
        try {
          // What the body does to be read belongs to the run; Node loses that in `pull`.
          const { done, value } = await run.within(() => reader.read());
          if (!done) return controller.enqueue(value);
          await over();
          controller.close();
        } catch (error) {
          await over();
          controller.error(error);
        }
      },
      async cancel(reason) {
        await over();
        await reader.cancel(reason);
      },
    },
    { highWaterMark: 0 },
  );
}

function isStream(thing: unknown): thing is AsyncIterable<unknown> {
  return typeof thing === "object" && thing !== null && Symbol.asyncIterator in thing;
}

/** The same items, made in the run; it ends when they end, fail, or are given up, also before the first was asked for. */
function closingEach<T>(items: AsyncIterable<T>, run: Run): AsyncGenerator<T> {
  const source = run.within(() => items[Symbol.asyncIterator]());
  const turn = async (take: () => Promise<IteratorResult<T>>): Promise<IteratorResult<T>> => {
    try {
      const taken = await run.within(take);
      if (taken.done) await ended(run);
      return taken;
    } catch (error) {
      await ended(run);
      throw error;
    }
  };
  const stop = async (value?: unknown) => {
    try {
      await run.within(() => source.return?.(value));
    } finally {
      await ended(run);
    }
    return { done: true, value } as IteratorReturnResult<unknown>;
  };
  const fail = async (error: unknown): Promise<never> => {
    await stop();
    throw error;
  };
  return {
    next: () => turn(() => source.next()),
    return: stop,
    throw: (error) =>
      source.throw ? turn(() => (source.throw as (error: unknown) => Promise<IteratorResult<T>>)(error)) : fail(error),
    [Symbol.asyncIterator]() {
      return this;
    },
    [Symbol.asyncDispose]: async () => void (await stop()),
  };
}

/**
 * A drop-in `fetch` whose every call is governed: for code without an SDK, and for SDKs that take a `fetch`.
 *
 * A refusal is a response in the shape of the vendor's own errors, so an SDK reads it as its own error;
 * `denied(response)` recognises it. A lost reply is what `fetch` makes of it, a `TypeError`; made again, the same call
 * joins the first one's spend. Documents (a quote's PDF, a file's contents) arrive as they are read.
 */

import { governed, keyOriginOf } from "./call.js";
import { argumentsOf } from "./front.js";
import type { Agent, Keybrake } from "./keybrake.js";
import { refuseUnknown } from "./options.js";
import type { Key, Run } from "./run.js";
import { type Input, responseOf, webCall } from "./web.js";

export type { GovernedResponse } from "./web.js";

/** How a governed `fetch` behaves. */
export interface FetchOptions {
  /** How long a call may wait while only open holds stand in its way; 0 by default. */
  waitMs?: number;
}

/**
 * A `fetch` that spends by a run, or by a vault key: `createFetch(run)`, `createFetch(keybrake, token)`. The token
 * stands where the vendor's secret stood; a call without `Authorization` gets it. Hosts of no vendor are refused.
 */
export function createFetch(run: Run, options?: FetchOptions): typeof fetch;
export function createFetch(keybrake: Keybrake | Agent, token: string | Key, options?: FetchOptions): typeof fetch;
export function createFetch(
  from: Run | Keybrake | Agent,
  second?: string | Key | FetchOptions,
  third?: FetchOptions,
): typeof fetch {
  const { front, options } = argumentsOf(from, second, third);
  refuseUnknown(options, ["waitMs"], "createFetch");
  const { waitMs = 0 } = options;
  return async (input: Input, init?: RequestInit): Promise<Response> => {
    const call = await webCall(front.token, input, init);
    const ended = await governed(front.keybrake, {
      ...call,
      keyOrigin: keyOriginOf(call.headers),
      run: front.run,
      waitMs,
      stream: true,
    });
    return responseOf(ended, call);
  };
}

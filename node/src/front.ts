/** What an adapter is made for: a run, or a `Keybrake` (or `Agent`) with a token. */

import { ConfigError } from "./errors.js";
import { kept } from "./inside.js";
import type { Agent, Keybrake } from "./keybrake.js";
import { shown, waitOf } from "./options.js";
import { type Key, type Run, tokenOf } from "./run.js";

/** Where a client's calls go, and by what key. */
export interface Front {
  readonly keybrake: Keybrake;
  readonly token: string;
  /** The run that the client was made for; without one, calls belong to the current run if they carry its token. */
  readonly run: Run | null;
}

/** The front of an adapter's first arguments: `(run)`, or `(keybrake, token)`. */
export function frontOf(from: Run | Keybrake | Agent, token?: string | Key): Front {
  if (isRun(from)) {
    if (token !== undefined)
      throw new ConfigError("a run has its token already; give a Keybrake and a token, or a run");
    return { keybrake: behind(from), token: from.token, run: from };
  }
  if (token === undefined) throw new ConfigError("a client of a Keybrake needs a vault key: its second argument");
  return { keybrake: behind(from), token: tokenOf(token), run: null };
}

/** The `Keybrake` itself, or the one behind a run or an agent. Not by `instanceof`: there are two builds of this package. */
function behind(from: Run | Keybrake | Agent): Keybrake {
  const keybrake = (kept(from) ?? from) as Keybrake;
  if (typeof keybrake?.engine?.send === "function") return keybrake;
  throw new ConfigError(`a client is made for a run, or for a Keybrake and a token, not for ${shown(from)}`);
}

/** An adapter's arguments, either `(run, options?)` or `(keybrake, token, options?)`. */
export function argumentsOf<Options extends object>(
  from: Run | Keybrake | Agent,
  second: string | Key | Options | undefined,
  third: Options | undefined,
): { front: Front; options: Options } {
  const hasToken = typeof second === "string" || (typeof second === "object" && "expiresAt" in second);
  const front = frontOf(from, hasToken ? (second as string | Key) : undefined);
  const options = (hasToken ? third : (second as Options | undefined)) ?? ({} as Options);
  waitOf((options as { waitMs?: unknown }).waitMs);
  return { front, options };
}

/** Refuses options of an SDK that belong to the transport which Keybrake's replaces. */
export function refuseTaken(options: object, taken: readonly string[]): void {
  for (const name of taken) {
    if (name in options)
      throw new ConfigError(`${name} belongs to the SDK's own transport; calls go through Keybrake's (see baseUrls)`);
  }
}

function isRun(thing: Run | Keybrake | Agent): thing is Run {
  return typeof thing === "object" && thing !== null && "keyId" in thing && "token" in thing;
}

/** What an adapter is made for: a run, or a `Keybrake` (or `Agent`) with a token. */

import { ConfigError } from "./errors.js";
import { Agent, type Keybrake } from "./keybrake.js";
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
    return { keybrake: from.keybrake, token: from.token, run: from };
  }
  if (token === undefined) throw new ConfigError("a client of a Keybrake needs a vault key: its second argument");
  return { keybrake: from instanceof Agent ? Agent.keybrake(from) : from, token: tokenOf(token), run: null };
}

function isRun(thing: Run | Keybrake | Agent): thing is Run {
  return "keyId" in thing && "token" in thing;
}

/** A simulator and a `Keybrake` with a ledger of its own for each test, and what several tests ask. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach } from "vitest";
import { Keybrake, type Policy, type Vendor } from "../src/index.js";
import { type Simulator, simulator } from "../src/testing.js";

export interface World {
  sim: Simulator;
  kb: Keybrake;
}

/** Call it once at the top of a file of tests. */
export function world(vendor: Vendor = "stripe"): World {
  const here = {} as World;
  beforeEach(() => {
    here.sim = simulator({ vendor });
    const { secret, url } = here.sim;
    here.kb = new Keybrake({ ledger: "memory:", secrets: { [vendor]: secret }, baseUrls: { [vendor]: url } });
  });
  afterEach(async () => {
    await here.kb.close();
    here.sim.stop();
  });
  return here;
}

/** A time zone whose midnight is half a day away: no test's day ends while it runs, whatever the hour. */
export const timezone = zoneAtNoon(new Date().getUTCHours());

function zoneAtNoon(hour: number): string {
  const ahead = 12 - hour;
  // The names of these zones count westwards.
  return ahead === 0 ? "Etc/GMT" : `Etc/GMT${ahead > 0 ? "-" : "+"}${Math.abs(ahead)}`;
}

/** What most tests of Stripe go by: $250 a day of refunds, and reads. */
export const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 250,
  timezone,
  allowed_endpoints: ["refunds.create", "files.create", "reads"],
};

setFlagsFromString("--expose-gc");
/** Collects garbage, all of it. */
export const collect = runInNewContext("gc") as () => void;

/** How many of these are still there once nothing but the test holds them, which had them from functions of their own. */
export async function left(references: readonly WeakRef<object>[]): Promise<number> {
  const there = () => references.filter((reference) => reference.deref()).length;
  // What has just run may still be on the stack.
  for (let turn = 0; turn < 100 && there() > 0; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
    collect();
  }
  return there();
}

/** What a promise rejected with; fails when it did not. */
export async function rejection(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error("it did not reject");
}

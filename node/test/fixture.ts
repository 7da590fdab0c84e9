/** A simulator and a `Keybrake` with a ledger of its own for each test, and what several tests ask. */

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

/** What most tests of Stripe go by: $250 a day of refunds, and reads. */
export const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 250,
  allowed_endpoints: ["refunds.create", "files.create", "reads"],
};

/** What a promise rejected with; fails when it did not. */
export async function rejection(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error("it did not reject");
}

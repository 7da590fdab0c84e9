/** A run's life as its holder sees it: what it gives away, how it ends, what it remembers. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { createFetch } from "../src/fetch.js";
import { type Agent, denied, Keybrake, LedgerError, type Run } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { policy, rejection, world } from "./fixture.js";

const at = world();
const charge = "https://api.stripe.com/v1/charges/ch_1";
afterEach(() => vi.restoreAllMocks());

/** The ledger does not answer this one question once. */
function blip(what: string): void {
  const ask = at.kb.engine.ask.bind(at.kb.engine);
  let left = 1;
  vi.spyOn(at.kb.engine, "ask").mockImplementation((asked, args) => {
    if (asked === what && left-- > 0) return Promise.reject(new LedgerError("the ledger is down"));
    return ask(asked, args);
  });
}

/** What the process is warned of while it works. */
async function warned(work: () => Promise<unknown>): Promise<string[]> {
  const emitted = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  await work();
  return emitted.mock.calls.map(([text]) => String(text));
}

/** Everything that fields, getters and prototypes of an object lead to. */
function reachable(from: object): Set<object> {
  const found = new Set<object>();
  const queue: object[] = [from];
  for (let next = queue.pop(); next && found.size < 5000; next = queue.pop()) {
    if (found.has(next) || next === Object.prototype || next === Function.prototype) continue;
    found.add(next);
    const holder = next;
    for (let owner: object | null = holder; owner && owner !== Object.prototype; owner = Object.getPrototypeOf(owner)) {
      for (const name of owner === Function.prototype ? [] : Reflect.ownKeys(owner)) {
        const { value, get } = Object.getOwnPropertyDescriptor(owner, name) as PropertyDescriptor;
        // Of the object that has it: a getter reads private fields.
        const read = get ? attempt(() => Reflect.apply(get, holder, [])) : value;
        if ((typeof read === "object" && read !== null) || typeof read === "function") queue.push(read);
      }
      if (owner !== holder) queue.push(owner);
    }
  }
  return found;
}

function attempt(work: () => unknown): unknown {
  try {
    return work();
  } catch {
    return null;
  }
}

describe("Keybrake.agent", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "keybrake-"));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  /** Its settings: a ledger that whoever issues the keys shares with it. */
  const shared = () => ({
    ledger: `sqlite:${join(folder, "spend.db")}`,
    secrets: { stripe: at.sim.secret },
    baseUrls: { stripe: at.sim.url },
  });

  test("leads to no way to issue, stop, revoke or change budgets: neither itself, nor its runs and clients", async () => {
    await using kb = new Keybrake(shared());
    const { token } = await kb.issue(policy);
    await using agent = Keybrake.agent(shared());
    const run = await agent.open(token);
    for (const held of [agent as Agent | Run, run, agent.open, createFetch(run), createStripe(run)]) {
      const all = reachable(held);
      expect([...all].filter((thing) => thing instanceof Keybrake)).toEqual([]);
      for (const order of ["issue", "stop", "revoke", "resume"] as const) {
        expect(all.has(Keybrake.prototype[order])).toBe(false);
        expect(order in held).toBe(false);
      }
    }
    expect(inspect(run, { depth: 9, showHidden: true })).not.toContain("engine");
    // @ts-expect-error a run has no way back
    expect(run.keybrake).toBeUndefined();
  });

  test("its clients spend", async () => {
    await using kb = new Keybrake(shared());
    const { token } = await kb.issue(policy);
    await using agent = Keybrake.agent(shared());
    await using run = await agent.open(token);
    expect((await createFetch(run)(charge)).status).toBe(200);
    expect((await createFetch(agent, token)(charge)).status).toBe(200);
  });
});

describe("closing", () => {
  test("tries the revocation again after the ledger did not take it", async () => {
    const run = await at.kb.open({ policy });
    blip("revoke");
    expect(await rejection(run.close())).toBeInstanceOf(LedgerError);
    expect(run.closed).toBe(true);
    const elsewhere = createFetch(await at.kb.open({ token: run.token }));
    expect((await elsewhere(charge)).status).toBe(200);
    await run.close();
    await run.close();
    expect(denied(await elsewhere(charge))?.code).toBe("key_revoked");
  });

  test("kb.run gives back what its work made although the revocation failed, with a warning", async () => {
    const [refundable] = await at.sim.charges(1, 5000);
    blip("revoke");
    let amount = 0;
    const warnings = await warned(async () => {
      const work = (run: Run) => createStripe(run).refunds.create({ charge: refundable as string });
      amount = (await at.kb.run({ policy }, work)).amount;
    });
    expect([amount, await at.sim.moved()]).toEqual([5000, 5000]);
    expect(warnings).toEqual([expect.stringMatching(/was not revoked and ends when it expires: .*ledger is down/)]);
  });

  test("kb.run throws what its work threw, also when the revocation failed", async () => {
    blip("revoke");
    let error: unknown;
    await warned(async () => {
      const work = (run: Run) => createStripe(run).payouts.create({ amount: 100, currency: "usd" });
      error = await rejection(at.kb.run({ policy }, work));
    });
    expect(denied(error)?.code).toBe("endpoint_not_allowed");
  });

  test("await using: the refusal is found in what suppressed it", async () => {
    blip("revoke");
    const error = await rejection(
      (async () => {
        await using run = await at.kb.open({ policy });
        await createStripe(run).payouts.create({ amount: 100, currency: "usd" });
      })(),
    );
    expect(error).toMatchObject({ name: "SuppressedError" });
    expect(denied(error)?.code).toBe("endpoint_not_allowed");
  });
});

test("run.signal aborts at the call that a stop refuses", async () => {
  await using run = await at.kb.open({ policy, run: "run_1" });
  await at.kb.stop({ run: "run_1" });
  await createFetch(run)(charge);
  expect(run.signal.aborted).toBe(true);
  expect(String(run.signal.reason)).toContain("stopped");
});

test("a run that no money budget limits says null, not nothing left", async () => {
  await using run = await at.kb.open({ policy: { vendor: "stripe", daily_call_cap: 5, allowed_endpoints: ["reads"] } });
  expect([await run.cap(), await run.spent(), await run.held(), await run.remaining()]).toEqual([
    null,
    null,
    null,
    null,
  ]);
  expect((await run.budgets()).map(({ unit, cap }) => [unit, cap])).toContainEqual(["calls", "5"]);
});

test("run.calls is a copy of the newest thousand", async () => {
  const run = await at.kb.open({ policy });
  const call = {
    operation: "reads",
    verdict: "allowed",
    cost: "0.00",
    replayed: false,
    status: 200,
    code: null,
  } as const;
  for (let i = 0; i < 2500; i += 1) run.note({ ...call, callId: String(i) });
  expect(run.calls).toHaveLength(1000);
  expect(run.calls.at(-1)?.callId).toBe("2499");
  expect(run.calls.at(0)?.callId).toBe("1500");
  (run.calls as unknown[]).length = 0;
  expect(run.calls).toHaveLength(1000);
  await run.close();
});

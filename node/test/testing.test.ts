import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { denied, Keybrake, type Policy } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { type TestKeybrake, testKeybrake } from "../src/testing.js";
import { timezone } from "./fixture.js";

const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 50,
  timezone,
  allowed_endpoints: ["refunds.create", "reads"],
};
const books = testKeybrake({ beforeEach, afterEach });
/** A charge of each test's own, by where its simulator was. */
const opened = new Map<string, string>();

/** Whether a simulator with this charge answers there. Another one may have got the port of one that has ended. */
async function knows(url: string, charge: string): Promise<boolean> {
  const headers = { Authorization: "Bearer sk_test_simulator" };
  const answer = await fetch(`${url}/v1/charges/${charge}`, { headers }).catch(() => null);
  return answer?.status === 200;
}

test.each([1, 2])("vitest: each test has books of its own (%i)", async () => {
  const mine = { id: `ch_${randomUUID()}`, amount: 5000 };
  await books.sim.control("POST", "seed", { charges: [mine] });
  expect(await knows(books.sim.url, mine.id)).toBe(true);
  opened.set(books.sim.url, mine.id);
  const run = await books.open({ policy });
  await createStripe(run).refunds.create({ charge: mine.id });
  expect(await run.spent()).toBe("50.00");
  expect(await books.sim.moved()).toBe(5000);
});

test("the simulator of an earlier test is gone", async () => {
  expect(opened.size).toBe(2);
  for (const [url, charge] of opened) expect(await knows(url, charge)).toBe(false);
});

test("without hooks they are closed by hand or by `await using`, with their runs", async () => {
  let kept: TestKeybrake;
  {
    await using own = testKeybrake();
    kept = own;
    const run = await own.open({ policy, narrow: { run_usd_cap: 1 } });
    const [charge] = await own.sim.charges(1, 5000);
    const error = await createStripe(run)
      .refunds.create({ charge: charge as string })
      .catch((thrown: unknown) => thrown);
    expect(denied(error)?.code).toBe("cap_exceeded");
    expect(own.keybrake).toBeInstanceOf(Keybrake);
  }
  expect(() => kept.sim).toThrow("these books are not open");
  await kept.close();
});

test("one hook alone is a mistake that is named", () => {
  expect(() => testKeybrake({ afterEach: () => {} })).toThrow("both hooks, or none");
});

test("jest: the Express example's tests, with modules loaded anew for each file", async () => {
  const node = join(import.meta.dirname, "..");
  const jest = join(node, "node_modules", "jest", "bin", "jest.js");
  const env = Object.entries(process.env).filter(([name]) => !/^(VITEST|NODE_ENV|JEST)/.test(name));
  const args = [jest, "--runInBand", "--ci", "--json", "--silent"];
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    cwd: join(node, "..", "examples", "node", "express-agent"),
    env: Object.fromEntries(env),
  }).catch((error) => {
    throw new Error(`jest failed:\n${error.stderr}`);
  });
  const { success, numPassedTests, numTotalTests } = JSON.parse(stdout);
  expect(success).toBe(true);
  expect(numPassedTests).toBeGreaterThan(0);
  expect(numPassedTests).toBe(numTotalTests);
});

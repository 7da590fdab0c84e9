import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { denied, Keybrake, type Policy } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { type TestKeybrake, testKeybrake } from "../src/testing.js";

const policy: Policy = { vendor: "stripe", daily_usd_cap: 50, allowed_endpoints: ["refunds.create", "reads"] };
const books = testKeybrake({ beforeEach, afterEach });
const opened = new Set<string>();

test.each([1, 2])("vitest: each test has books of its own (%i)", async () => {
  opened.add(books.sim.url);
  const [charge] = await books.sim.charges(1, 5000);
  const run = await books.open({ policy });
  await createStripe(run).refunds.create({ charge: charge as string });
  expect(await run.spent()).toBe("50.00");
  expect(await books.sim.moved()).toBe(5000);
});

test("the simulator of an earlier test is gone", async () => {
  expect(opened.size).toBe(2);
  for (const url of opened) await expect(fetch(`${url}/_sim/totals`)).rejects.toThrow("fetch failed");
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

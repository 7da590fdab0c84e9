// `testKeybrake` under jest: a second file in the same process, with modules loaded anew.
"use strict";
const { denied, Keybrake } = require("keybrake");
const { createStripe } = require("keybrake/stripe");
const { testKeybrake } = require("keybrake/testing");

const policy = { vendor: "stripe", daily_usd_cap: 50, allowed_endpoints: ["refunds.create", "reads"] };
const books = testKeybrake({ beforeEach, afterEach });

test.each([1, 2])("each test has books of its own (%i)", async () => {
  const [charge] = await books.sim.charges(1, 5000);
  const run = await books.open({ policy });
  await createStripe(run).refunds.create({ charge });
  expect(await run.spent()).toBe("50.00");
  expect(await books.sim.moved()).toBe(5000);
});

test("without hooks, they are closed by hand, with their runs", async () => {
  const own = testKeybrake();
  const run = await own.open({ policy });
  expect(own.keybrake).toBeInstanceOf(Keybrake);
  await own.close();
  expect(run.closed).toBe(true);
  expect(() => own.sim).toThrow("not open");
  await own.close();
});

test("a live vendor is out of reach of a test", async () => {
  const keybrake = new Keybrake({ ledger: "memory:", secrets: { stripe: "sk_test_1" } });
  try {
    const run = await keybrake.open({ policy });
    const error = await createStripe(run)
      .refunds.create({ charge: "ch_1" })
      .catch((thrown) => thrown);
    expect(denied(error)).toBeNull();
    expect(error.message).toMatch(/a test would call api\.stripe\.com/);
  } finally {
    await keybrake.close();
  }
});

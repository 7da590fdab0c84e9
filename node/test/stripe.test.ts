import Stripe from "stripe";
import { afterEach, beforeEach, expect, test } from "vitest";
import { denied, Keybrake, type Policy } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";
import { timezone } from "./fixture.js";

const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 250,
  timezone,
  allowed_endpoints: ["refunds.create", "reads"],
};

let sim: Simulator;
let kb: Keybrake;

beforeEach(() => {
  sim = simulator();
  kb = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
});

afterEach(async () => {
  await kb.close();
  sim.stop();
});

test("a refund moves what it says, and the run knows it", async () => {
  const [charge] = await sim.charges(1, 5000);
  await using run = await kb.open({ policy });
  const stripe = createStripe(run);
  const refund = await stripe.refunds.create({ charge: charge as string });
  expect(refund.amount).toBe(5000);
  expect(refund.lastResponse.statusCode).toBe(200);
  expect(await run.spent()).toBe("50.00");
  expect(await sim.moved()).toBe(5000);
  expect(run.calls.map((call) => [call.operation, call.verdict, call.cost])).toEqual([
    ["refunds.create", "allowed", "50.00"],
  ]);
});

test("fifty at once spend the cap and not a cent more", async () => {
  const charges = await sim.charges(50, 5000);
  await using run = await kb.open({ policy });
  const stripe = createStripe(run);
  const ended = await Promise.allSettled(charges.map((charge) => stripe.refunds.create({ charge })));
  expect(ended.filter(({ status }) => status === "fulfilled")).toHaveLength(5);
  expect(await sim.moved()).toBe(25_000);
  for (const one of ended) {
    if (one.status === "fulfilled") continue;
    expect(one.reason).toBeInstanceOf(Stripe.errors.StripeError);
    expect(denied(one.reason)?.code).toMatch(/^cap_(exceeded|held)$/);
  }
});

test("a refusal is the SDK's own error, made once", async () => {
  await using run = await kb.open({ policy });
  const stripe = createStripe(run, { maxNetworkRetries: 3 });
  const error = await stripe.payouts.create({ amount: 100, currency: "usd" }).then(
    () => null,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(Stripe.errors.StripePermissionError);
  const refusal = denied(error);
  expect(refusal?.code).toBe("endpoint_not_allowed");
  expect(refusal?.forModel()).toMatch(/^NOT DONE \(payouts\.create\)\./);
  expect(run.calls).toHaveLength(1);
  expect(await sim.requests()).toEqual([]);
});

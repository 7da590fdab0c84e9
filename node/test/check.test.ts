/** `check` says what would happen, and says when it does not know. */

import { expect, test } from "vitest";
import { Keybrake, type Policy } from "../src/index.js";
import { createResend } from "../src/resend.js";
import { createStripe } from "../src/stripe.js";
import { simulator } from "../src/testing.js";
import { world } from "./fixture.js";

const at = world();

test("a refund, whose amount is looked up, is not said to fit a cap", async () => {
  const endpoints = ["refunds.create", "payment_intents.create", "reads"];
  await using run = await at.kb.open({ policy: { vendor: "stripe", daily_usd_cap: 20, allowed_endpoints: endpoints } });
  const refund = await run.check("POST /v1/refunds", { charge: "ch_1" });
  expect(refund).toMatchObject({ allowed: true, needsLookup: true, amountUsd: null, code: null });
  expect(refund.message).toContain("not judged against caps");
  const intent = (amount: number) => run.check("POST /v1/payment_intents", { amount, currency: "usd" });
  expect(await intent(500)).toEqual({ allowed: true, needsLookup: false, amountUsd: "5.00", code: null, message: "" });
  expect(await intent(5000)).toMatchObject({
    allowed: false,
    needsLookup: false,
    code: "cap_exceeded",
    amountUsd: "50.00",
  });
  expect(await run.check("GET /v1/charges", { limit: 3 })).toMatchObject({ allowed: true, needsLookup: false });
  expect(await run.check("POST /v1/payouts", { amount: 1, currency: "usd" })).toMatchObject({
    allowed: false,
    needsLookup: false,
    code: "endpoint_not_allowed",
  });
  expect([await at.sim.requests(), await at.kb.audit()]).toEqual([[], []]);
  await createStripe(run).refunds.create({ charge: (await at.sim.charges(1, 1000))[0] as string });
});

test("a call to Resend is judged as Resend's SDK would send it", async () => {
  using sim = simulator({ vendor: "resend" });
  const settings = { ledger: "memory:", secrets: { resend: sim.secret }, baseUrls: { resend: sim.url } };
  await using kb = new Keybrake(settings);
  const policy: Policy = {
    vendor: "resend",
    daily_usd_cap: "0.001",
    allowed_endpoints: ["emails.send", "reads"],
    operation_costs: { resend: { "emails.send": "0.001" } },
  };
  await using run = await kb.open({ policy });
  const email = { from: "a@a.example", to: ["b@b.example"], subject: "x", text: "a & b = c" };
  const check = () => run.check("POST /emails", email, "resend");
  expect(await check()).toMatchObject({ allowed: true, code: null, amountUsd: "0.001", needsLookup: false });
  expect((await createResend(run).emails.send(email)).error).toBeNull();
  expect(await check()).toMatchObject({ allowed: false, code: "cap_exceeded" });
  expect(await sim.sent()).toHaveLength(1);
});

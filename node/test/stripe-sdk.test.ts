/** stripe-node's own machinery over the engine: streams, files, v2, hosts, timeouts, retries, keys, paging, accounts. */

import { once } from "node:events";
import type { Readable } from "node:stream";
import Stripe from "stripe";
import { describe, expect, test } from "vitest";
import { ConfigError, denied, type Policy } from "../src/index.js";
import { createStripe, type StripeOptions } from "../src/stripe.js";
import { policy, rejection, timezone, world } from "./fixture.js";

const here = world();

/** More than refunds, and a price for what has none. */
const wide: Policy = {
  vendor: "stripe",
  daily_usd_cap: 500,
  timezone,
  allowed_endpoints: [
    "reads",
    "files.create",
    "payment_intents.create",
    "v2.billing.meter_events.create",
    "v2.billing.meter_event_stream.create",
  ],
  operation_costs: { "v2.billing.meter_events.create": "0.01", "v2.billing.meter_event_stream.create": "0.01" },
};

async function read(stream: Readable): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces);
}

describe("streams", () => {
  test("a quote's PDF arrives as it is read, and is settled by its end", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
    const pdf = (await createStripe(run).quotes.pdf("qt_1")) as unknown as Readable;
    await once(pdf, "readable");
    const first = pdf.read() as Buffer;
    expect([first.subarray(0, 4).toString(), first.byteLength]).toEqual(["%PDF", 1000]);
    expect(run.calls).toEqual([]);
    await here.sim.release();
    expect(first.byteLength + (await read(pdf)).byteLength).toBe(256 * 1024);
    expect(run.calls.map((call) => [call.operation, call.verdict])).toEqual([["quotes.pdf", "allowed"]]);
  });

  test("destroyed early it is unknown, and nothing is held", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
    const told = new Promise((resolve) => here.kb.on("unknown", resolve));
    const pdf = (await createStripe(run).quotes.pdf("qt_1")) as unknown as Readable;
    await once(pdf, "readable");
    pdf.destroy();
    await told;
    expect(run.calls.map((call) => call.verdict)).toEqual(["unknown"]);
    expect(await run.held()).toBe("0.00");
    await here.sim.release();
  });

  test("broken off it errors", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("reset_mid_body", { method: "GET" });
    const pdf = (await createStripe(run).quotes.pdf("qt_1")) as unknown as Readable;
    expect(String(await rejection(read(pdf)))).toMatch("broke off");
    expect(run.calls.map((call) => call.verdict)).toEqual(["unknown"]);
  });

  test("one that is refused is the SDK's own error", async () => {
    await using run = await here.kb.open({ policy: { ...policy, allowed_endpoints: ["refunds.create"] } });
    const error = await rejection(createStripe(run).quotes.pdf("qt_1"));
    expect(error).toBeInstanceOf(Stripe.errors.StripePermissionError);
    expect(denied(error)?.code).toBe("endpoint_not_allowed");
  });
});

test("files go up to files.stripe.com, and their contents come down", async () => {
  await using run = await here.kb.open({ policy: wide });
  const stripe = createStripe(run);
  const data = Buffer.from("%PDF-1.4 evidence\0\xff", "latin1");
  const file = { data, name: "evidence.pdf", type: "application/pdf" };
  const made = await stripe.files.create({ purpose: "dispute_evidence", file });
  expect([made.object, made.size]).toEqual(["file", data.byteLength]);
  expect((await stripe.files.retrieve(made.id)).id).toBe(made.id);
  const streamed = await createStripe(run).files.create({
    purpose: "dispute_evidence",
    file: { ...file, data: (await import("node:stream")).Readable.from([data]) as never },
  });
  expect(streamed.size).toBe(data.byteLength);
  expect(run.calls.map((call) => call.operation)).toEqual(["files.create", "files.retrieve", "files.create"]);
});

test("v2: its reads, its writes, and a price for what has none", async () => {
  await using run = await here.kb.open({ policy: wide });
  const stripe = createStripe(run);
  expect((await stripe.v2.core.events.list({ object_id: "ch_1" })).data).toBeInstanceOf(Array);
  await stripe.v2.billing.meterEvents.create({
    event_name: "tokens",
    payload: { stripe_customer_id: "cus_1", value: "5" },
  });
  expect(run.calls.map((call) => [call.operation, call.cost])).toEqual([
    ["v2.core.events.list", "0.00"],
    ["v2.billing.meter_events.create", "0.01"],
  ]);
  const [request] = await here.sim.requests("/v2/billing", "POST");
  expect(request?.idempotency_key).not.toMatch(/^stripe-node-retry-/);
  await using narrow = await here.kb.open({ policy: { ...policy, label: "narrow" } });
  const error = await rejection(
    createStripe(narrow).v2.billing.meterEvents.create({ event_name: "tokens", payload: {} }),
  );
  expect(error).toBeInstanceOf(Stripe.errors.StripeError);
  expect(denied(error)?.code).toBe("endpoint_not_allowed");
});

test("the hosts of meter events and of Connect are governed too", async () => {
  await using run = await here.kb.open({ policy: wide });
  const stripe = createStripe(run);
  // The simulator does not have it: what it was asked for is in its list of requests.
  await rejection(stripe.v2.billing.meterEventStream.create({ events: [{ event_name: "tokens", payload: {} }] }));
  expect((await here.sim.requests("/v2/billing/meter_event_stream")).length).toBeGreaterThan(0);
  expect(run.calls.map((call) => call.operation)).toContain("v2.billing.meter_event_stream.create");
  const error = await rejection(stripe.oauth.token({ grant_type: "authorization_code", code: "ac_1" }));
  expect(denied(error)).not.toBeNull();
  expect(await here.sim.requests("/oauth")).toEqual([]);
});

test("raw requests are governed as well", async () => {
  await using run = await here.kb.open({ policy });
  const stripe = createStripe(run);
  expect(((await stripe.rawRequest("GET", "/v1/charges/ch_1")) as unknown as { id: string }).id).toBe("ch_1");
  expect(denied(await rejection(stripe.rawRequest("POST", "/v1/payouts", { amount: 1, currency: "usd" })))?.code).toBe(
    "endpoint_not_allowed",
  );
});

describe("retries", () => {
  test.for(["drop_after_executing", "status_500_after_executing", "reset_mid_body", "drop_before"] as const)(
    "%s: the SDK tries again, and it is one movement",
    async (fault) => {
      await using run = await here.kb.open({ policy });
      await here.sim.fault(fault, { pathPrefix: "/v1/refunds" });
      const stripe = createStripe(run, { maxNetworkRetries: 2 });
      // Stripe keeps a 500 for its key, and answers it again.
      const kept = fault === "status_500_after_executing";
      const refund = stripe.refunds.create({ charge: "ch_1" });
      if (kept) expect(await rejection(refund)).toBeInstanceOf(Stripe.errors.StripeError);
      else expect((await refund).amount).toBe(5000);
      expect([await here.sim.movements(), await here.sim.moved()]).toEqual([1, 5000]);
      expect([await run.spent(), await run.held()]).toEqual(kept ? ["0.00", "50.00"] : ["50.00", "0.00"]);
      const keys = (await here.sim.requests("/v1/refunds", "POST")).map((request) => request.idempotency_key);
      expect(keys.length).toBeGreaterThan(1);
      expect(new Set(keys).size).toBe(1);
    },
  );

  test("a refusal is asked for once, whatever the SDK may retry", async () => {
    await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: 60 } });
    const stripe = createStripe(run, { maxNetworkRetries: 5 });
    await stripe.refunds.create({ charge: "ch_1" });
    const error = await rejection(stripe.refunds.create({ charge: "ch_2" }));
    expect(error).toBeInstanceOf(Stripe.errors.StripeRateLimitError);
    const { statusCode, code, headers, raw } = error as Stripe.errors.StripeError;
    expect([statusCode, code, headers?.["x-keybrake-cap-hit"]]).toEqual([429, "cap_exceeded", "true"]);
    expect((raw as { keybrake?: { call_id?: string } }).keybrake?.call_id).toBe(denied(error)?.callId);
    expect(denied(error)).toMatchObject({ capUsd: "60.00", usedUsd: "50.00", requestedUsd: "50.00", retryable: false });
    expect(run.calls.map((call) => call.verdict)).toEqual(["allowed", "denied"]);
    expect((await here.sim.requests("/v1/refunds", "POST")).length).toBe(1);
  });

  test("Stripe's own rate limit is told from a cap", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("rate_limit", { pathPrefix: "/v1/refunds" });
    const error = await rejection(createStripe(run).refunds.create({ charge: "ch_1" }));
    expect(error).toBeInstanceOf(Stripe.errors.StripeRateLimitError);
    expect(denied(error)).toBeNull();
    expect(await run.held()).toBe("0.00");
  });
});

describe("keys", () => {
  const sent = async () => (await here.sim.requests("/v1/refunds", "POST")).map((request) => request.idempotency_key);

  test("the caller's is forwarded, the SDK's is replaced", async () => {
    await using run = await here.kb.open({ policy });
    const stripe = createStripe(run);
    await stripe.refunds.create({ charge: "ch_1", amount: 100 }, { idempotencyKey: "order-17" });
    await stripe.refunds.create({ charge: "ch_2", amount: 100 });
    const [mine, derived] = await sent();
    expect(mine).toBe("order-17");
    expect(derived).not.toMatch(/^stripe-node-retry-/);
  });

  test("the same key again is one spend; the same content without one is a repeat", async () => {
    await using run = await here.kb.open({ policy });
    const stripe = createStripe(run);
    for (let time = 0; time < 2; time += 1) {
      await stripe.refunds.create({ charge: "ch_1", amount: 100 }, { idempotencyKey: "order-17" });
      await stripe.refunds.create({ charge: "ch_2", amount: 100 });
    }
    expect([await here.sim.movements(), await run.spent()]).toEqual([2, "2.00"]);
    expect(run.calls.map((call) => call.replayed)).toEqual([false, false, true, true]);
    await run.step("second", () => stripe.refunds.create({ charge: "ch_2", amount: 100 }));
    expect(await here.sim.movements()).toBe(3);
  });

  test("one key for two amounts is the SDK's idempotency error", async () => {
    await using run = await here.kb.open({ policy });
    const stripe = createStripe(run);
    const refund = (amount: number) =>
      stripe.refunds.create({ charge: "ch_1", amount }, { idempotencyKey: "order-17" });
    await refund(100);
    const error = await rejection(refund(200));
    expect(denied(error)?.code).toBe("idempotency_conflict");
    expect(denied(error)?.existing?.amountUsd).toBe("1.00");
    expect(await here.sim.movements()).toBe(1);
  });
});

test("pages are fetched one by one, by autoPagingToArray and by for await", async () => {
  await using run = await here.kb.open({ policy });
  const stripe = createStripe(run);
  const all = await stripe.charges.list({ limit: 3 }).autoPagingToArray({ limit: 100 });
  const ids = all.map((charge) => charge.id);
  expect(ids.length).toBeGreaterThan(6);
  expect(new Set(ids).size).toBe(ids.length);
  const iterated: string[] = [];
  for await (const charge of stripe.charges.list({ limit: 4 })) iterated.push(charge.id);
  expect(iterated).toEqual(ids);
  expect(run.calls.length).toBe(Math.ceil(ids.length / 3) + Math.ceil(ids.length / 4));
  expect(new Set(run.calls.map((call) => call.operation))).toEqual(new Set(["charges.list"]));
});

test("a connected account goes where the SDK says, and only where the policy allows", async () => {
  await using run = await here.kb.open({ policy: { ...policy, allowed_accounts: ["acct_1"] } });
  const [charge] = await here.sim
    .control<{ charges: string[] }>("POST", "seed", {
      account: "acct_1",
      charges: [{ amount: 900 }],
    })
    .then((made) => made.charges);
  const stripe = createStripe(run, { stripeAccount: "acct_1" });
  await stripe.refunds.create({ charge: charge as string });
  const row = (await here.sim.control<{ movements: { account: string; amount: number }[] }>("GET", "journal"))
    .movements;
  expect(row.map(({ account, amount }) => [account, amount])).toEqual([["acct_1", 900]]);
  const error = await rejection(stripe.refunds.create({ charge: "ch_1" }, { stripeAccount: "acct_2" }));
  expect(denied(error)?.code).toBe("account_not_allowed");
});

describe("options of the SDK", () => {
  test("pass through", async () => {
    await using run = await here.kb.open({ policy });
    const stripe = createStripe(run, {
      apiVersion: "2024-06-20" as never,
      appInfo: { name: "shop" },
      telemetry: false,
    });
    const heard: string[] = [];
    stripe.on(
      "response",
      (event: Stripe.ResponseEvent) => void heard.push(`${event.method} ${event.path} ${event.status}`),
    );
    const charge = await stripe.charges.retrieve("ch_1", { expand: ["customer"] });
    expect(charge.lastResponse.apiVersion).toBe("2024-06-20");
    expect(heard).toEqual(["GET /v1/charges/ch_1?expand[0]=customer 200"]);
  });

  test("that replace the transport are refused", async () => {
    await using run = await here.kb.open({ policy });
    for (const taken of ["httpClient", "httpAgent", "host", "port", "protocol", "authenticator"])
      expect(() => createStripe(run, { [taken]: "x" } as StripeOptions)).toThrow(ConfigError);
    expect(() => createStripe(run, run.token as never)).toThrow(ConfigError);
  });

  test("waitMs waits while only open holds stand in the way", async () => {
    await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: 60 } });
    await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", when: "after" });
    const first = createStripe(run).refunds.create({ charge: "ch_1", amount: 4000 });
    await here.sim.waitHeld();
    const error = await rejection(createStripe(run).refunds.create({ charge: "ch_2", amount: 4000 }));
    expect(denied(error)).toMatchObject({ code: "cap_held", retryable: true });
    const second = createStripe(run, { waitMs: 30_000 }).refunds.create({ charge: "ch_3", amount: 2000 });
    await here.sim.release();
    expect([(await first).amount, (await second).amount]).toEqual([4000, 2000]);
  });
});

test("an error of Stripe's own passes through, without what could still be confirmed", async () => {
  await using run = await here.kb.open({ policy: wide });
  const declined = await rejection(
    createStripe(run).paymentIntents.create({
      amount: 1000,
      currency: "usd",
      payment_method: "pm_card_chargeDeclined",
      confirm: true,
    }),
  );
  expect(declined).toBeInstanceOf(Stripe.errors.StripeCardError);
  expect(denied(declined)).toBeNull();
  expect(JSON.stringify((declined as Stripe.errors.StripeError).raw)).not.toContain("_secret_");
  expect(await run.held()).toBe("0.00");
  const missing = await rejection(createStripe(run).charges.retrieve("ch_none"));
  expect(missing).toBeInstanceOf(Stripe.errors.StripeInvalidRequestError);
});

test("a failure of Keybrake itself is the SDK's API error, and is not repeated", async () => {
  const run = await here.kb.open({ policy });
  const stripe = createStripe(run, { maxNetworkRetries: 3 });
  await here.kb.close();
  const error = await rejection(stripe.charges.retrieve("ch_1"));
  expect(error).toBeInstanceOf(Stripe.errors.StripeAPIError);
  expect(String(error)).toMatch("closed");
});

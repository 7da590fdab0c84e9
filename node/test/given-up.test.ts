/** A call that its caller gave up in flight is a call: every hook and `run.calls` have it, and its amount stays held. */

import Stripe from "stripe";
import { describe, expect, test } from "vitest";
import { createFetch } from "../src/fetch.js";
import { type Keybrake, type Policy, type Run, VendorError } from "../src/index.js";
import { createResend } from "../src/resend.js";
import { createStripe } from "../src/stripe.js";
import { createTwilio } from "../src/twilio.js";
import { policy, rejection, timezone, type World, world } from "./fixture.js";

function heardBy(kb: Keybrake): string[] {
  const heard: string[] = [];
  kb.on("call", (call) => void heard.push(`call ${call.callId} ${call.verdict}`));
  kb.on("unknown", (call) => void heard.push(`unknown ${call.callId} ${call.verdict}`));
  return heard;
}

/** Far longer than a call takes to be sent, also where other processes have the machine. */
const TIMEOUT = 3_000;

/**
 * What the caller of a call gets that is given up once the vendor has it; of the call, everything is noted. Whoever gives
 * it up by a deadline is late enough: a machine that is slower than that fails here, with what it waited for.
 */
async function givenUp(
  here: World,
  of: Policy,
  held: string,
  call: (run: Run, signal: AbortSignal) => Promise<unknown>,
  deadline = false,
): Promise<unknown> {
  await using run = await here.kb.open({ policy: of, run: "run_1" });
  const heard = heardBy(here.kb);
  await here.sim.fault("hold_until_released");
  const giving = new AbortController();
  const ended = call(run, giving.signal).catch((error: unknown) => error);
  await here.sim.waitHeld();
  if (!deadline) giving.abort();
  const caught = await ended;
  const [hold] = await here.kb.holds();
  expect([hold?.state, hold?.heldUsd]).toEqual(["unknown", held]);
  expect(run.calls.map((call) => [call.callId, call.verdict, call.cost])).toEqual([[hold?.callId, "unknown", null]]);
  expect(heard).toEqual([`call ${hold?.callId} unknown`, `unknown ${hold?.callId} unknown`]);
  await here.sim.release();
  return caught;
}

describe("Stripe", () => {
  const here = world();
  const refund = (run: Run, signal?: AbortSignal) =>
    createFetch(run)("https://api.stripe.com/v1/refunds", {
      method: "POST",
      body: new URLSearchParams({ charge: "ch_1", amount: "700" }),
      signal: signal ?? null,
    });

  test("the SDK's timeout is the SDK's connection error", async () => {
    const stripe = (run: Run) => createStripe(run, { maxNetworkRetries: 0, timeout: TIMEOUT });
    const call = (run: Run) => stripe(run).refunds.create({ charge: "ch_1", amount: 700 });
    const error = await givenUp(here, policy, "7.00", call, true);
    expect(error).toBeInstanceOf(Stripe.errors.StripeConnectionError);
    expect(String(error)).toMatch(`${TIMEOUT}ms`);
  });

  test("the SDK's timeout while an amount is looked up: nothing was sent", async () => {
    await using run = await here.kb.open({ policy });
    const heard = heardBy(here.kb);
    await here.sim.fault("hold_until_released", { method: "GET" });
    const stripe = createStripe(run, { maxNetworkRetries: 0, timeout: 500 });
    expect(String(await rejection(stripe.refunds.create({ charge: "ch_1" })))).toMatch(/aborted|timeout/i);
    expect([heard, run.calls, await here.sim.moved()]).toEqual([[], [], 0]);
    await here.sim.release();
  });

  test("fetch's AbortSignal, and the call made again joins it", async () => {
    const error = await givenUp(here, policy, "7.00", refund);
    expect((error as DOMException).name).toBe("AbortError");
    await using run = await here.kb.open({ policy, run: "run_1" });
    expect((await refund(run)).status).toBe(200);
    expect([await run.spent(), await run.held(), await here.sim.moved()]).toEqual(["7.00", "0.00", 700]);
  });
});

const costs: Policy = {
  daily_usd_cap: 1,
  timezone,
  allowed_endpoints: { twilio: ["messages.create"], resend: ["emails.send"] },
  operation_costs: { twilio: { "messages.create": "0.05" }, resend: { "emails.send": "0.05" } },
};

describe("Twilio", () => {
  const here = world("twilio");
  const message = { to: "+15558675310", from: "+15557122661", body: "Ahoy" };

  test("the SDK's timeout says that it may have been sent", async () => {
    const call = (run: Run) => createTwilio(run, { timeout: TIMEOUT }).messages.create(message);
    const error = await givenUp(here, costs, "0.05", call, true);
    expect(error).toBeInstanceOf(VendorError);
    expect(error).toMatchObject({ code: "ECONNABORTED" });
    expect(String(error)).toMatch(`timeout of ${TIMEOUT}ms exceeded: no reply from the vendor`);
    expect(String(error)).toMatch("may have taken effect");
  });

  test("the SDK's timeout before anything was sent says so", async () => {
    await using run = await here.kb.open({ policy: { ...costs, daily_usd_cap: "0.05" } });
    await here.sim.fault("hold_until_released");
    const giving = new AbortController();
    const first = createFetch(run)(
      "https://api.twilio.com/2010-04-01/Accounts/AC00000000000000000000000000000000/Messages.json",
      {
        method: "POST",
        body: new URLSearchParams({ To: message.to, From: message.from, Body: "first" }),
        signal: giving.signal,
      },
    ).catch(() => {});
    await here.sim.waitHeld();
    // It waits for the room that the first one holds.
    const error = await rejection(createTwilio(run, { timeout: 300, waitMs: 60_000 }).messages.create(message));
    expect(error).toMatchObject({ code: "ECONNABORTED" });
    expect(String(error)).toMatch("timeout of 300ms exceeded: the call to Twilio was not sent; no money moved");
    expect([await run.held(), run.calls]).toEqual(["0.05", []]);
    giving.abort();
    await first;
    await here.sim.release();
  });
});

describe("Resend", () => {
  const here = world("resend");
  test("a timeout of the client's own", async () => {
    const email = { from: "shop@acme.example", to: "b@b.example", subject: "Your order", text: "It left." };
    const answer = await givenUp(here, costs, "0.05", (run, signal) =>
      createResend(run).fetchRequest("/emails", {
        method: "POST",
        headers: new Headers({ Authorization: `Bearer ${run.token}`, "Content-Type": "application/json" }),
        body: JSON.stringify(email),
        signal,
      }),
    );
    expect((answer as { error?: Error }).error?.message).toMatch("may have taken effect");
  });
});

/** A call that its caller gave up in flight is a call: every hook and `run.calls` have it, and its amount stays held. */

import { describe, expect, test } from "vitest";
import { createFetch } from "../src/fetch.js";
import type { Keybrake, Policy, Run } from "../src/index.js";
import { createResend } from "../src/resend.js";
import { createStripe } from "../src/stripe.js";
import { createTwilio } from "../src/twilio.js";
import { policy, rejection, type World, world } from "./fixture.js";

function heardBy(kb: Keybrake): string[] {
  const heard: string[] = [];
  kb.on("call", (call) => void heard.push(`call ${call.callId} ${call.verdict}`));
  kb.on("unknown", (call) => void heard.push(`unknown ${call.callId} ${call.verdict}`));
  return heard;
}

/** What is noted of the one call that was given up. */
async function noted(here: World, run: Run, heard: string[], held: string) {
  const [hold] = await here.kb.holds();
  expect([hold?.state, hold?.heldUsd]).toEqual(["unknown", held]);
  expect(run.calls.map((call) => [call.callId, call.verdict, call.cost])).toEqual([[hold?.callId, "unknown", null]]);
  expect(heard).toEqual([`call ${hold?.callId} unknown`, `unknown ${hold?.callId} unknown`]);
  await here.sim.release();
}

describe("Stripe", () => {
  const here = world();

  test("the SDK's timeout", async () => {
    await using run = await here.kb.open({ policy });
    const heard = heardBy(here.kb);
    await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
    const stripe = createStripe(run, { maxNetworkRetries: 0, timeout: 500 });
    expect(String(await rejection(stripe.refunds.create({ charge: "ch_1", amount: 700 })))).toMatch(/aborted|timeout/i);
    await noted(here, run, heard, "7.00");
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
    await using run = await here.kb.open({ policy });
    const heard = heardBy(here.kb);
    await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
    const giving = new AbortController();
    const refund = (signal?: AbortSignal) =>
      createFetch(run)("https://api.stripe.com/v1/refunds", {
        method: "POST",
        body: new URLSearchParams({ charge: "ch_1", amount: "700" }),
        signal: signal ?? null,
      });
    const call = refund(giving.signal);
    await here.sim.waitHeld();
    giving.abort();
    expect(((await rejection(call)) as DOMException).name).toBe("AbortError");
    await noted(here, run, heard, "7.00");
    expect((await refund()).status).toBe(200);
    expect([await run.spent(), await run.held(), await here.sim.moved()]).toEqual(["7.00", "0.00", 700]);
  });
});

const costs: Policy = {
  daily_usd_cap: 1,
  allowed_endpoints: { twilio: ["messages.create"], resend: ["emails.send"] },
  operation_costs: { twilio: { "messages.create": "0.05" }, resend: { "emails.send": "0.05" } },
};

describe("Twilio", () => {
  const here = world("twilio");
  test("the SDK's timeout", async () => {
    await using run = await here.kb.open({ policy: costs });
    const heard = heardBy(here.kb);
    await here.sim.fault("hold_until_released");
    const message = { to: "+15558675310", from: "+15557122661", body: "Ahoy" };
    const error = await rejection(createTwilio(run, { timeout: 300 }).messages.create(message));
    expect(error).toMatchObject({ code: "ECONNABORTED" });
    await noted(here, run, heard, "0.05");
  });
});

describe("Resend", () => {
  const here = world("resend");
  test("a timeout of the client's own", async () => {
    await using run = await here.kb.open({ policy: costs });
    const heard = heardBy(here.kb);
    await here.sim.fault("hold_until_released");
    const giving = new AbortController();
    const resend = createResend(run);
    const sending = resend.fetchRequest("/emails", {
      method: "POST",
      headers: new Headers({ Authorization: `Bearer ${run.token}`, "Content-Type": "application/json" }),
      body: JSON.stringify({ from: "shop@acme.example", to: "b@b.example", subject: "Your order", text: "It left." }),
      signal: giving.signal,
    });
    await here.sim.waitHeld();
    giving.abort();
    expect((await sending).error?.message).toMatch("may have taken effect");
    await noted(here, run, heard, "0.05");
  });
});

/** `authorize` and `settle` around a fetch that the user keeps. */

import { inspect } from "node:util";
import { expect, test } from "vitest";
import { type Authorization, ConfigError, denied, type Permit, type Run } from "../src/index.js";
import { left, policy, rejection, world } from "./fixture.js";

const REFUNDS = "https://api.stripe.com/v1/refunds";
const here = world();

function refund(run: Run, charge: string): Promise<Authorization> {
  return run.authorize(REFUNDS, { method: "POST", body: new URLSearchParams({ charge }) });
}

async function permit(run: Run, charge = "ch_1"): Promise<Permit> {
  const verdict = await refund(run, charge);
  if (verdict.kind !== "permit") throw new Error(`not permitted: ${verdict.kind}`);
  return verdict.permit;
}

test("a permit is sent by the user's own fetch, and settled by what came back", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  // The charge's amount was looked up by us, and pinned.
  expect(permitted.heldUsd).toBe("50.00");
  expect(await run.held()).toBe("50.00");
  expect(permitted.expired).toBe(false);
  const request = permitted.request();
  expect(request.url).toBe(`${here.sim.url}/v1/refunds`);
  expect(request.headers.get("authorization")).toBe(`Bearer ${here.sim.secret}`);
  expect(request.redirect).toBe("manual");
  const body = await request.clone().text();
  expect(new URLSearchParams(body).get("amount")).toBe("5000");
  const reply = await permitted.settle(await fetch(request));
  expect([reply.status, reply.url]).toEqual([200, REFUNDS]);
  expect(reply.headers.get("x-keybrake-call-id")).toBe(permitted.callId);
  expect(((await reply.json()) as { amount: number }).amount).toBe(5000);
  expect([await run.spent(), await run.held(), await here.sim.moved()]).toEqual(["50.00", "0.00", 5000]);
  expect(run.calls.map((call) => [call.callId, call.verdict, call.cost])).toEqual([
    [permitted.callId, "allowed", "50.00"],
  ]);
});

test("send does all of it, and a repeat is replayed without being sent", async () => {
  await using run = await here.kb.open({ policy });
  let sent = 0;
  const mine: typeof fetch = (input, init) => {
    sent += 1;
    return fetch(input, init);
  };
  const first = (await (await (await permit(run)).send(mine)).json()) as { id: string };
  const again = await refund(run, "ch_1");
  expect(again.kind).toBe("replayed");
  if (again.kind !== "replayed") return;
  expect(again.response.headers.get("x-keybrake-replayed")).toBe("true");
  expect(((await again.response.json()) as { id: string }).id).toBe(first.id);
  expect([sent, await here.sim.movements()]).toEqual([1, 1]);
});

test("a refusal says so, in the vendor's shape, and nothing may be sent", async () => {
  await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: 60 } });
  await permit(run);
  const verdict = await refund(run, "ch_2");
  expect(verdict.kind).toBe("denied");
  if (verdict.kind !== "denied") return;
  expect([verdict.denied.code, denied(verdict.response)?.code]).toEqual(["cap_held", "cap_held"]);
  expect(((await verdict.response.json()) as { error: { code: string } }).error.code).toBe("cap_held");
  expect(verdict.info.verdict).toBe("denied");
  // Only the lookups reached the vendor.
  expect((await here.sim.requests()).map((request) => request.method)).not.toContain("POST");
});

test("a permit is settled once", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  await permitted.send();
  expect(await rejection(permitted.neverSent())).toBeInstanceOf(ConfigError);
  expect(await rejection(permitted.lost())).toBeInstanceOf(ConfigError);
  expect(() => permitted.request()).toThrow(ConfigError);
  expect(await run.spent()).toBe("50.00");
});

test("never sent gives the hold back; lost keeps it, and the next attempt joins it", async () => {
  await using run = await here.kb.open({ policy });
  expect((await (await permit(run, "ch_1")).neverSent()).verdict).toBe("allowed");
  expect(await run.held()).toBe("0.00");
  const unknown: string[] = [];
  here.kb.on("unknown", (call) => void unknown.push(call.callId));
  const lost = await permit(run, "ch_2");
  expect((await lost.lost("timeout")).verdict).toBe("unknown");
  expect(unknown).toEqual([lost.callId]);
  expect(await run.held()).toBe("50.00");
  const joined = await permit(run, "ch_2");
  expect(joined.callId).toBe(lost.callId);
  await joined.send();
  expect([await run.spent(), await run.held(), await here.sim.movements()]).toEqual(["50.00", "0.00", 1]);
});

test("whatever the user's fetch throws is thrown, and the call is unknown", async () => {
  await using run = await here.kb.open({ policy });
  const refused = new TypeError("fetch failed", { cause: Object.assign(new Error(), { code: "ECONNREFUSED" }) });
  const error = await rejection((await permit(run)).send(() => Promise.reject(refused)));
  expect(error).toBe(refused);
  // A fetch that repeats may have sent it once before it was refused: nothing is proven.
  expect(run.calls.map((call) => call.verdict)).toEqual(["unknown"]);
  expect(await run.held()).toBe("50.00");
});

test("a reply that broke off is lost", async () => {
  await using run = await here.kb.open({ policy });
  await here.sim.fault("reset_mid_body", { pathPrefix: "/v1/refunds" });
  expect(await rejection((await permit(run)).send())).toBeInstanceOf(TypeError);
  expect(await run.held()).toBe("50.00");
  await (await permit(run)).send();
  expect([await run.spent(), await here.sim.movements()]).toEqual(["50.00", 1]);
});

test("the caller's signal aborts what its fetch sends", async () => {
  await using run = await here.kb.open({ policy });
  await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
  const giving = new AbortController();
  const body = new URLSearchParams({ charge: "ch_1" });
  const verdict = await run.authorize(REFUNDS, { method: "POST", body, signal: giving.signal });
  if (verdict.kind !== "permit") throw new Error(verdict.kind);
  const sending = verdict.permit.send();
  await here.sim.waitHeld();
  giving.abort();
  expect(((await rejection(sending)) as DOMException).name).toBe("AbortError");
  expect(await run.held()).toBe("50.00");
  await here.sim.release();
});

/** A permit that only this function ever held. */
async function drop(run: Run, charge: string): Promise<WeakRef<Permit>> {
  return new WeakRef(await permit(run, charge));
}

test("a permit that is dropped, collected as garbage or not, stays held", async () => {
  await using run = await here.kb.open({ policy });
  const dropped = await drop(run, "ch_1");
  expect(await left([dropped])).toBe(0);
  await new Promise((resolve) => setImmediate(resolve));
  await permit(run, "ch_2");
  expect(await run.held()).toBe("100.00");
  expect((await here.kb.holds()).map((hold) => [hold.operation, hold.heldUsd])).toEqual([
    ["refunds.create", "50.00"],
    ["refunds.create", "50.00"],
  ]);
  await run.close();
  expect(await here.kb.holds()).toHaveLength(2);
});

test("the secret is shown by nothing but the request", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  for (const shown of [
    inspect(permitted, { depth: 9, showHidden: true }),
    JSON.stringify(permitted),
    String(permitted),
  ])
    expect(shown).not.toContain(here.sim.secret);
});

test("a Keybrake authorises by a token", async () => {
  const key = await here.kb.issue(policy);
  const init = { headers: { Authorization: `Bearer ${key.token}` } };
  const verdict = await here.kb.authorize(key, new Request("https://api.stripe.com/v1/charges/ch_1", init));
  if (verdict.kind !== "permit") throw new Error(verdict.kind);
  const reply = await verdict.permit.send();
  expect(((await reply.json()) as { id: string }).id).toBe("ch_1");
});

test("a vendor's refusal of the only attempt gives the hold back", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  const reply = await permitted.settle({ status: 429, headers: [], body: '{"error":{"type":"rate_limit_error"}}' });
  expect(reply.status).toBe(429);
  expect(await run.held()).toBe("0.00");
});

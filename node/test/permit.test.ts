/** A permit is one attempt, and its hold ends by proof only. The simulator's journal says what moved. */

import { setTimeout as pause } from "node:timers/promises";
import { expect, test } from "vitest";
import type { PermittedInit } from "../src/authorize.js";
import { createFetch } from "../src/fetch.js";
import { ConfigError, type Permit, type Run } from "../src/index.js";
import { policy, rejection, world } from "./fixture.js";

const REFUNDS = "https://api.stripe.com/v1/refunds";
const here = world();

async function permit(run: Run, charge = "ch_1", signal: AbortSignal | null = null): Promise<Permit> {
  const verdict = await run.authorize(REFUNDS, { method: "POST", body: new URLSearchParams({ charge }), signal });
  if (verdict.kind !== "permit") throw new Error(`not permitted: ${verdict.kind}`);
  return verdict.permit;
}

/** A `fetch` that knows nothing of the platform's classes, as node-fetch and undici from npm do. */
async function foreign(url: string, init: RequestInit) {
  if (typeof url !== "string") throw new TypeError("Invalid URL");
  const reply = await fetch(url, init);
  const body = await reply.arrayBuffer();
  return { status: reply.status, headers: Object.fromEntries(reply.headers), arrayBuffer: async () => body };
}

test("never sent is refused while it is being sent: the hold stands, and the cap is kept", async () => {
  await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: 60 } });
  await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  const permitted = await permit(run);
  const sending = permitted.send();
  await here.sim.waitHeld();
  expect(await rejection(permitted.neverSent())).toBeInstanceOf(ConfigError);
  const second = await createFetch(run)(REFUNDS, { method: "POST", body: new URLSearchParams({ charge: "ch_2" }) });
  expect(second.status).toBe(429);
  await here.sim.release();
  expect((await sending).status).toBe(200);
  expect([await here.sim.moved(), await run.spent(), await run.held()]).toEqual([5000, "50.00", "0.00"]);
});

test("a reply that somebody makes up while it is being sent is refused; that it is lost is taken", async () => {
  await using run = await here.kb.open({ policy });
  await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
  const permitted = await permit(run);
  const sending = permitted.send();
  await here.sim.waitHeld();
  for (const status of [200, 400]) {
    const made = permitted.settle({ status, headers: [], body: '{"error":{"type":"card_error"}}' });
    expect(await rejection(made)).toBeInstanceOf(ConfigError);
  }
  expect(await run.held()).toBe("50.00");
  expect((await permitted.lost("impatient")).verdict).toBe("unknown");
  await here.sim.release();
  expect(await rejection(sending)).toBeInstanceOf(ConfigError);
  expect([await run.held(), await here.sim.movements()]).toEqual(["50.00", 1]);
});

test("once never sent is said, the request is not handed out any more, not even in the same turn", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  const given = permitted.neverSent();
  expect(() => permitted.request()).toThrow(ConfigError);
  await given;
  expect([await here.sim.movements(), await run.held()]).toEqual([0, "0.00"]);
});

test("an abort after the request was handed out says nothing about the hold", async () => {
  await using run = await here.kb.open({ policy });
  const giver = new AbortController();
  const permitted = await permit(run, "ch_1", giver.signal);
  const request = permitted.request();
  giver.abort();
  expect(await rejection(permitted.send())).toBeInstanceOf(ConfigError);
  expect(await run.held()).toBe("50.00");
  await permitted.settle(await fetch(request));
  expect([await here.sim.movements(), await run.spent(), await run.held()]).toEqual([1, "50.00", "0.00"]);
});

test("a permit sends once: the second send throws before anything leaves", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  const sent = await Promise.allSettled([permitted.send(), permitted.send()]);
  expect(sent.map((one) => one.status)).toEqual(["fulfilled", "rejected"]);
  expect((sent[1] as PromiseRejectedResult).reason).toBeInstanceOf(ConfigError);
  expect((await here.sim.requests()).filter((request) => request.method === "POST")).toHaveLength(1);
  expect([await here.sim.movements(), await run.spent()]).toEqual([1, "50.00"]);
});

test("a request is handed out once, and then not sent by send as well", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  const request = permitted.request();
  expect(() => permitted.request()).toThrow(ConfigError);
  expect(await rejection(permitted.send())).toBeInstanceOf(ConfigError);
  await permitted.settle(await fetch(request));
  expect([await here.sim.movements(), await run.spent(), await run.held()]).toEqual([1, "50.00", "0.00"]);
});

test("never sent after the request was handed out is its holder's word", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  permitted.request();
  expect((await permitted.neverSent()).verdict).toBe("allowed");
  expect([await run.held(), await here.sim.movements()]).toEqual(["0.00", 0]);
});

test("expired says that nothing left: never of what is being sent or was handed out", async () => {
  await using run = await here.kb.open({ policy });
  await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  const sent = await permit(run, "ch_1");
  const handed = await permit(run, "ch_2");
  const late = await permit(run, "ch_3");
  const idle = await permit(run, "ch_4");
  const sending = sent.send();
  handed.request();
  await here.sim.waitHeld();
  // Ten seconds of the ledger's clock, which cannot be moved from here: nothing else says that they are over.
  while (!idle.expired) await pause(50);
  expect([sent.expired, handed.expired]).toEqual([false, false]);
  expect(() => late.request()).toThrow(/expired before it was sent/);
  expect(late.expired).toBe(true);
  await late.neverSent();
  expect(String(await rejection(idle.send()))).toMatch("nothing was sent");
  await here.sim.release();
  expect((await sending).status).toBe(200);
  expect([sent.expired, await run.held(), await here.sim.movements()]).toEqual([false, "50.00", 1]);
});

test("aborted before it is sent: nothing leaves, and the hold is given back", async () => {
  await using run = await here.kb.open({ policy });
  const giving = new AbortController();
  const permitted = await permit(run, "ch_1", giving.signal);
  giving.abort();
  expect(((await rejection(permitted.send())) as DOMException).name).toBe("AbortError");
  expect([await run.held(), await here.sim.movements()]).toEqual(["0.00", 0]);
});

test("any fetch sends it: what it is given is a URL and an init", async () => {
  await using run = await here.kb.open({ policy });
  const inits: PermittedInit[] = [];
  const reply = await (await permit(run)).send((url, init) => {
    inits.push(init);
    return foreign(url, init);
  });
  expect([reply.status, ((await reply.json()) as { amount: number }).amount]).toEqual([200, 5000]);
  expect(inits.map(({ method, redirect, cache }) => [method, redirect, cache])).toEqual([
    ["POST", "manual", "no-store"],
  ]);
  expect([await here.sim.movements(), await run.spent(), await run.held()]).toEqual([1, "50.00", "0.00"]);
});

test("a foreign response settles; what is no reply is refused, and the permit stays open for the right one", async () => {
  await using run = await here.kb.open({ policy });
  const permitted = await permit(run);
  const request = permitted.request();
  expect(request.cache).toBe("no-store");
  const reply = await foreign(request.url, {
    method: request.method,
    headers: Object.fromEntries(request.headers),
    body: await request.arrayBuffer(),
  });
  for (const wrong of [
    { status: 200, headers: [], body: { amount: 5000 } },
    { status: "200", headers: [], body: "{}" },
    { status: 200, body: "{}" },
    { status: 200, headers: { "request-id": "req_1\nx-keybrake-replayed: true" }, body: "{}" },
    { status: 200, headers: [["request-id\r", "req_1"]], body: "{}" },
  ])
    expect(await rejection(permitted.settle(wrong as never))).toBeInstanceOf(ConfigError);
  expect(await run.held()).toBe("50.00");
  const headers = { ...reply.headers, "set-cookie": ["a=1", "b=2"] };
  expect((await permitted.settle({ ...reply, headers })).status).toBe(200);
  expect([await here.sim.movements(), await run.spent(), await run.held()]).toEqual([1, "50.00", "0.00"]);
});

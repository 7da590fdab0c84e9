/** `keybrake/fetch` against Stripe's simulator: what goes in as to `fetch`, what comes out as from it. */

import Stripe from "stripe";
import { describe, expect, test, vi } from "vitest";
import { createFetch } from "../src/fetch.js";
import { ConfigError, denied, VendorError } from "../src/index.js";
import { left, policy, rejection, world } from "./fixture.js";

const REFUNDS = "https://api.stripe.com/v1/refunds";
const PDF = "https://files.stripe.com/v1/quotes/qt_1/pdf";
const form = (fields: Record<string, string>) => new URLSearchParams(fields);

const here = world();

describe("a request in every form that fetch takes", () => {
  const bytes = () => new TextEncoder().encode("charge=ch_1");
  const type = { "content-type": "application/x-www-form-urlencoded" };
  const piecemeal = () =>
    new ReadableStream({
      start(controller) {
        for (const byte of bytes()) controller.enqueue(Uint8Array.of(byte));
        controller.close();
      },
    });
  const forms: [string, () => [string | URL | Request, RequestInit?]][] = [
    ["URLSearchParams", () => [REFUNDS, { method: "POST", body: form({ charge: "ch_1" }) }]],
    ["text and a header object", () => [REFUNDS, { method: "POST", body: "charge=ch_1", headers: type }]],
    [
      "a URL, pairs of headers",
      () => [new URL(REFUNDS), { method: "post", body: bytes(), headers: [["Content-Type", type["content-type"]]] }],
    ],
    ["a buffer and Headers", () => [REFUNDS, { method: "POST", body: bytes().buffer, headers: new Headers(type) }]],
    ["a Blob", () => [REFUNDS, { method: "POST", body: new Blob([bytes()], { type: type["content-type"] }) }]],
    ["a stream", () => [REFUNDS, { method: "POST", body: piecemeal(), headers: type, duplex: "half" }]],
    [
      "an async iterable",
      () => [REFUNDS, { method: "POST", body: piecemeal().values() as never, headers: type, duplex: "half" }],
    ],
    ["a Request", () => [new Request(REFUNDS, { method: "POST", body: form({ charge: "ch_1" }) })]],
    [
      "a Request that streams",
      () => [new Request(REFUNDS, { method: "POST", body: piecemeal(), headers: type, duplex: "half" })],
    ],
    [
      "a Request and an init",
      () => [new Request(REFUNDS, { method: "POST", body: "charge=ch_2" }), { body: bytes(), headers: type }],
    ],
  ];
  test.for(forms)("%s", async ([, made]) => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    const reply = await fetch(...made());
    expect([reply.status, reply.ok, reply.statusText, reply.url]).toEqual([200, true, "OK", REFUNDS]);
    expect(reply.headers.get("content-type")).toMatch("application/json");
    expect(((await reply.json()) as { amount: number }).amount).toBe(5000);
    expect(await here.sim.moved()).toBe(5000);
    expect(denied(reply)).toBeNull();
    expect(await run.spent()).toBe("50.00");
  });

  test("what fetch itself refuses", async () => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    expect(await rejection(fetch("/v1/refunds"))).toBeInstanceOf(TypeError);
    expect(await rejection(fetch(REFUNDS, { method: "GET", body: "x" }))).toBeInstanceOf(TypeError);
    const used = new Request(REFUNDS, { method: "POST", body: "x" });
    await used.text();
    expect(await rejection(fetch(used))).toBeInstanceOf(TypeError);
    expect(await here.sim.requests()).toEqual([]);
    expect(run.calls).toEqual([]);
  });

  test.each([
    ["text", () => "x".repeat(64 * 1024 * 1024 + 1)],
    ["text whose characters take several bytes", () => "\u20ac".repeat(23 * 1024 * 1024)],
    ["bytes", () => new Uint8Array(64 * 1024 * 1024 + 1)],
  ])("a body that is too long is not taken: %s", async (_, body) => {
    await using run = await here.kb.open({ policy });
    const error = await rejection(createFetch(run)(REFUNDS, { method: "POST", body: body() }));
    expect(error).toBeInstanceOf(TypeError);
    expect(String(error)).toMatch("longer than");
    expect(await here.sim.requests()).toEqual([]);
  });

  test("a body that never ends is not taken", async () => {
    await using run = await here.kb.open({ policy });
    const piece = new Uint8Array(8 * 1024 * 1024);
    let cancelled = false;
    const endless = new ReadableStream({
      pull: (controller) => controller.enqueue(piece),
      cancel: () => {
        cancelled = true;
      },
    });
    const error = await rejection(createFetch(run)(REFUNDS, { method: "POST", body: endless, duplex: "half" }));
    expect(String(error)).toMatch("longer than");
    expect(cancelled).toBe(true);
    expect(await here.sim.requests()).toEqual([]);
  });
});

describe("whose calls they are", () => {
  test("a token of the caller's own goes before the run's, and a Keybrake takes any", async () => {
    const key = await here.kb.issue({ ...policy, label: "other" });
    await using run = await here.kb.open({ policy });
    const own = { method: "POST", body: form({ charge: "ch_1" }), headers: { Authorization: `Bearer ${key.token}` } };
    expect((await createFetch(run)(REFUNDS, own)).status).toBe(200);
    expect(await run.spent()).toBe("0.00");
    const fetch = createFetch(here.kb, key);
    expect((await fetch(REFUNDS, { method: "POST", body: form({ charge: "ch_2" }) })).status).toBe(200);
    expect(await (await here.kb.open({ token: key })).spent()).toBe("100.00");
    expect(() => createFetch(here.kb, undefined as never)).toThrow(ConfigError);
  });

  test("the vendor never sees the vault key, and hosts that are no vendor's see nothing", async () => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    await fetch("https://api.stripe.com/v1/charges/ch_1");
    const [request] = await here.sim.requests();
    expect(JSON.stringify(request)).not.toContain(run.token);
    const key = await here.kb.issue(policy);
    const kb = here.kb as unknown as { allowLiveInTests: boolean };
    kb.allowLiveInTests = true; // so that the engine refuses it, and not the guard of tests
    const reply = await createFetch(here.kb, key)("https://example.com/v1/refunds");
    expect(denied(reply)?.code).toBe("vendor_not_allowed");
  });
});

describe("a refusal", () => {
  test("is the vendor's own error, recognised read or unread, and on a clone", async () => {
    await using run = await here.kb.open({ policy });
    const refunds = createFetch(run);
    const reply = await refunds("https://api.stripe.com/v1/payouts", {
      method: "POST",
      body: form({ amount: "1", currency: "usd" }),
    });
    expect([reply.status, reply.ok, reply.bodyUsed]).toEqual([403, false, false]);
    expect(denied(reply)?.code).toBe("endpoint_not_allowed");
    const copy = reply.clone();
    const body = (await reply.json()) as { error: { type: string; code: string } };
    expect(body.error.code).toBe("endpoint_not_allowed");
    expect(denied(body)?.code).toBe("endpoint_not_allowed");
    expect(denied(reply)?.operation).toBe("payouts.create");
    expect(denied(copy)?.code).toBe("endpoint_not_allowed");
    expect(copy.clone().url).toBe("https://api.stripe.com/v1/payouts");
    expect(reply.headers.get("x-keybrake-verdict")).toBe("endpoint_not_allowed");
    expect(reply.headers.get("x-should-retry")).toBe("false");
    expect(await here.sim.requests()).toEqual([]);
  });

  test("stripe-node over fetch reads it as its own error and asks once", async () => {
    await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: 60 } });
    let asked = 0;
    const governed = createFetch(run);
    const counted: typeof fetch = (input, init) => {
      asked += 1;
      return governed(input, init);
    };
    const stripe = new Stripe(run.token, { httpClient: Stripe.createFetchHttpClient(counted), maxNetworkRetries: 3 });
    expect((await stripe.refunds.create({ charge: "ch_1" })).amount).toBe(5000);
    const error = await rejection(stripe.refunds.create({ charge: "ch_2" }));
    expect(error).toBeInstanceOf(Stripe.errors.StripeError);
    expect(denied(error)?.code).toBe("cap_exceeded");
    expect(asked).toBe(2);
    expect(await here.sim.moved()).toBe(5000);
  });

  test("a closed run refuses in the vendor's shape", async () => {
    const run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    await run.close();
    const reply = await fetch("https://api.stripe.com/v1/charges/ch_1");
    expect([reply.status, denied(reply)?.code]).toEqual([401, "key_expired"]);
  });
});

describe("a reply that is lost", () => {
  test("is fetch's own TypeError, and made again the call joins the first one", async () => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    const refund = () => fetch(REFUNDS, { method: "POST", body: form({ charge: "ch_1" }) });
    await here.sim.fault("drop_after_executing", { pathPrefix: "/v1/refunds" });
    const error = (await rejection(refund())) as TypeError;
    expect(error).toBeInstanceOf(TypeError);
    expect(error.message).toBe("fetch failed");
    expect(error.cause).toBeInstanceOf(VendorError);
    expect(await run.held()).toBe("50.00");
    expect((await refund()).status).toBe(200);
    expect([await here.sim.movements(), await run.spent(), await run.held()]).toEqual([1, "50.00", "0.00"]);
  });

  test("a redirect is never followed", async () => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    const elsewhere = { status: 302, times: 2, headers: { location: `${here.sim.url}/v1/charges/ch_2` }, body: "" };
    await here.sim.fault("status", { method: "GET", ...elsewhere });
    const read = (init: RequestInit) => fetch("https://api.stripe.com/v1/charges/ch_1", init);
    expect((await read({})).status).toBe(302);
    expect(await rejection(read({ redirect: "error" }))).toBeInstanceOf(TypeError);
    expect(await here.sim.requests()).toHaveLength(2);
  });
});

describe("AbortSignal", () => {
  test("aborted before: nothing is judged or sent", async () => {
    await using run = await here.kb.open({ policy });
    const refund = (signal: AbortSignal) =>
      createFetch(run)(REFUNDS, { method: "POST", body: form({ charge: "ch_1" }), signal });
    const error = (await rejection(refund(AbortSignal.abort()))) as DOMException;
    expect(error).toBeInstanceOf(DOMException);
    expect(error.name).toBe("AbortError");
    const mine = new Error("mine");
    expect(await rejection(refund(AbortSignal.abort(mine)))).toBe(mine);
    expect(await here.sim.requests()).toEqual([]);
    expect(await here.kb.audit()).toEqual([]);
  });

  test.for(["init", "Request"])(
    "in flight (of the %s): the platform's AbortError, and the amount stays held",
    async (how) => {
      await using run = await here.kb.open({ policy });
      const fetch = createFetch(run);
      await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
      const giving = new AbortController();
      const init = { method: "POST", body: form({ charge: "ch_1", amount: "700" }), signal: giving.signal };
      const call = how === "init" ? fetch(REFUNDS, init) : fetch(new Request(REFUNDS, init));
      await here.sim.waitHeld();
      giving.abort();
      expect(((await rejection(call)) as DOMException).name).toBe("AbortError");
      expect(await run.held()).toBe("7.00");
      await here.sim.release();
    },
  );

  test("a timeout is the platform's TimeoutError", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
    const init = { method: "POST", body: form({ charge: "ch_1", amount: "700" }), signal: AbortSignal.timeout(300) };
    expect(((await rejection(createFetch(run)(REFUNDS, init))) as DOMException).name).toBe("TimeoutError");
    await here.sim.release();
  });

  test("while the request's own stream is read: it is cancelled, nothing is judged", async () => {
    await using run = await here.kb.open({ policy });
    const giving = new AbortController();
    let cancelled: unknown = null;
    const body = new ReadableStream({
      pull: () => giving.abort(new Error("enough")),
      cancel: (reason) => {
        cancelled = reason;
      },
    });
    const call = createFetch(run)(REFUNDS, { method: "POST", body, duplex: "half", signal: giving.signal });
    expect(String(await rejection(call))).toMatch("enough");
    expect(String(cancelled)).toMatch("enough");
    expect(await here.kb.audit()).toEqual([]);
  });

  test("while a document arrives: the body errors at once, the call is unknown", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
    const giving = new AbortController();
    const reply = await createFetch(run)(PDF, { signal: giving.signal });
    const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
    expect((await reader.read()).value?.byteLength).toBe(1000);
    const rest = reader.read();
    giving.abort();
    expect(((await rejection(rest)) as DOMException).name).toBe("AbortError");
    await here.kb.flush();
    expect((await here.kb.audit()).map((row) => row.operation)).toEqual(["quotes.pdf"]);
    await here.sim.release();
  });
});

describe("documents", () => {
  test("the first bytes are there before the vendor has sent the last", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
    const reply = await createFetch(run)(PDF);
    const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
    const first = (await reader.read()).value as Uint8Array;
    expect(Buffer.from(first.subarray(0, 4)).toString()).toBe("%PDF");
    expect(run.calls).toEqual([]);
    await here.sim.release();
    let length = first.byteLength;
    for (let next = await reader.read(); !next.done; next = await reader.read()) length += next.value.byteLength;
    expect(length).toBe(256 * 1024);
    expect(run.calls.map((call) => call.verdict)).toEqual(["allowed"]);
  });

  test("whole, by blob, and into a buffer of the reader's own", async () => {
    await using run = await here.kb.open({ policy });
    const fetch = createFetch(run);
    expect((await (await fetch(PDF)).blob()).size).toBe(256 * 1024);
    const reply = await fetch(PDF);
    const reader = (reply.body as ReadableStream<Uint8Array>).getReader({ mode: "byob" });
    let length = 0;
    for (let next = await reader.read(new Uint8Array(3000)); !next.done; next = await reader.read(new Uint8Array(3000)))
      length += next.value.byteLength;
    expect(length).toBe(256 * 1024);
    expect(run.calls.map((call) => call.verdict)).toEqual(["allowed", "allowed"]);
  });

  test("cancelled early, also while a piece is waited for: unknown, and nothing is held", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
    const reply = await createFetch(run)(PDF);
    const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
    await reader.read();
    const waiting = reader.read();
    await reader.cancel();
    expect((await waiting).done).toBe(true);
    expect(run.calls.map((call) => call.verdict)).toEqual(["unknown"]);
    expect(await run.held()).toBe("0.00");
    await here.sim.release();
  });

  test("broken off: the body errors and says so", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("reset_mid_body", { method: "GET" });
    const reply = await createFetch(run)(PDF);
    expect(String(await rejection(reply.arrayBuffer()))).toMatch("broke off");
    expect(run.calls.map((call) => call.verdict)).toEqual(["unknown"]);
  });

  test("without a body (204): its end is heard of although nobody can read it", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("status", { method: "GET", status: 204 });
    const reply = await createFetch(run)(PDF);
    expect([reply.status, reply.body]).toEqual([204, null]);
    await vi.waitFor(() => expect(run.calls).toHaveLength(1), 30_000);
    expect(await here.kb.holds()).toEqual([]);
  });

  test("one that nobody holds any more is collected, however long its signal lives", async () => {
    await using run = await here.kb.open({ policy });
    const giving = new AbortController();
    const fetch = createFetch(run);
    const forgotten = await forgetful(() => fetch(PDF, { signal: giving.signal }));
    expect(await left([forgotten])).toBe(0);
    giving.abort();
  });
});

/** What only this function ever held. */
async function forgetful(make: () => Promise<object>): Promise<WeakRef<object>> {
  return new WeakRef(await make());
}

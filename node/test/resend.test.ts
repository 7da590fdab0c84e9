/** A real Resend over the engine, against Resend's simulator. Like the SDK's own, its calls never throw. */

import { Resend } from "resend";
import { describe, expect, test } from "vitest";
import { ConfigError, denied, type Policy } from "../src/index.js";
import { createResend, type ResendOptions } from "../src/resend.js";
import { timezone, world } from "./fixture.js";

const here = world("resend");

const policy: Policy = {
  vendor: "resend",
  daily_usd_cap: "0.01",
  timezone,
  allowed_endpoints: ["emails.send", "emails.batch", "emails.get", "emails.list"],
  operation_costs: { "emails.send": "0.001", "emails.batch": "0.002" },
};
const email = { from: "Acme <a@acme.example>", to: ["b@b.example"], subject: "Hé", text: "1 + 1 = 2 ☕" };

test("an e-mail is sent once at the policy's cost, as it was given", async () => {
  await using run = await here.kb.open({ policy });
  const resend = createResend(run);
  expect(resend).toBeInstanceOf(Resend);
  const { data, error, headers } = await resend.emails.send({ ...email, cc: "c@c.example" });
  expect(error).toBeNull();
  expect(headers?.["x-keybrake-verdict"]).toBe("allowed");
  const [sent] = await here.sim.sent();
  expect(sent?.object).toBe(data?.id);
  expect([...(sent?.to ?? [])].sort()).toEqual(["b@b.example", "c@c.example"]);
  const read = await resend.emails.get(data?.id as string);
  expect([read.data?.subject, read.data?.text]).toEqual([email.subject, email.text]);
  expect(await run.spent()).toBe("0.001");
  expect(run.calls.map((call) => [call.operation, call.verdict, call.cost])).toEqual([
    ["emails.send", "allowed", "0.001"],
    ["emails.get", "allowed", "0.00"],
  ]);
});

test("a batch, and a list", async () => {
  await using run = await here.kb.open({ policy });
  const resend = createResend(run);
  const batch = await resend.batch.send([email, { ...email, to: "d@d.example" }]);
  expect(batch.data?.data).toHaveLength(2);
  expect(await here.sim.sent()).toHaveLength(2);
  expect((await resend.emails.list({ limit: 10 })).data?.data).toHaveLength(2);
  expect(await run.spent()).toBe("0.002");
});

test("the real secret goes out, and the vault key does not", async () => {
  await using run = await here.kb.open({ policy });
  await createResend(run).emails.send(email);
  const [request] = await here.sim.requests();
  expect(request?.authorization).toBe("bearer_test_key");
  expect(JSON.stringify(request)).not.toContain(run.token);
});

describe("a refusal", () => {
  test("is the error of a result, made once, and never thrown", async () => {
    await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: "0.001" } });
    const resend = createResend(run);
    await resend.emails.send(email);
    const result = await resend.emails.send({ ...email, subject: "second" });
    expect(result.data).toBeNull();
    expect(result.error).toMatchObject({ name: "cap_exceeded", statusCode: 429 });
    expect(result.error?.message).toMatch("cap");
    expect(result.headers?.["x-keybrake-cap-hit"]).toBe("true");
    for (const found of [denied(result), denied(result.error)]) {
      expect(found).toMatchObject({ code: "cap_exceeded", capUsd: "0.001", requestedUsd: "0.001" });
      expect(found?.forModel()).toMatch(/^NOT DONE\./);
    }
    expect(run.calls.map((call) => call.verdict)).toEqual(["allowed", "denied"]);
    expect(await here.sim.sent()).toHaveLength(1);
    expect(await here.sim.requests()).toHaveLength(1);
  });

  test("without a cost in the policy nothing is sent", async () => {
    const { operation_costs, ...bare } = policy;
    await using run = await here.kb.open({ policy: bare });
    const result = await createResend(run).emails.send(email);
    expect(denied(result)?.code).toBe("cost_unknown");
    expect(await here.sim.requests()).toEqual([]);
    expect(operation_costs).toBeDefined();
  });

  test("of an upload, of a dot segment, of a closed run", async () => {
    const run = await here.kb.open({ policy });
    const resend = createResend(run);
    const form = new FormData();
    form.set("file", new Blob(["x"]), "x.csv");
    expect(denied(await resend.post("/emails", form))?.code).toBe("request_malformed");
    expect(denied(await resend.get("/emails/../api-keys"))?.code).toBe("endpoint_not_allowed");
    await run.close();
    expect(denied(await resend.emails.send(email))?.code).toBe("key_expired");
    expect(await here.sim.requests()).toEqual([]);
  });
});

describe("what does not throw", () => {
  test("an error of Resend's own is handed on, and gives the cost back", async () => {
    await using run = await here.kb.open({ policy });
    const result = await createResend(run).emails.send({ ...email, to: "nobody" });
    expect(result.error?.statusCode).toBe(422);
    expect(denied(result)).toBeNull();
    expect([await run.spent(), await run.held()]).toEqual(["0.00", "0.00"]);
  });

  test("a lost answer stays held; made again the call joins it, and one e-mail is sent", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("drop_after_executing");
    const resend = createResend(run);
    const lost = await resend.emails.send(email);
    expect(lost).toMatchObject({ data: null, error: { name: "application_error", statusCode: null }, headers: null });
    expect(lost.error?.message).toMatch("may have taken effect");
    expect(denied(lost)).toBeNull();
    expect(await run.held()).toBe("0.001");
    expect((await resend.emails.send(email)).error).toBeNull();
    expect(await here.sim.sent()).toHaveLength(1);
    expect([await run.spent(), await run.held()]).toEqual(["0.001", "0.00"]);
    const keys = (await here.sim.requests()).map((request) => request.idempotency_key);
    expect(new Set(keys).size).toBe(1);
  });

  test("an answer that is not JSON, an abort, and a Keybrake that is closed", async () => {
    const run = await here.kb.open({ policy });
    const resend = createResend(run);
    await here.sim.fault("status", { method: "GET", status: 502, body: "<html>bad gateway</html>" });
    expect((await resend.emails.list()).error).toMatchObject({ name: "application_error", statusCode: 502 });
    await here.sim.fault("hold_until_released");
    const giving = new AbortController();
    const sending = resend.emails.send(email, { signal: giving.signal } as never);
    await here.sim.waitHeld();
    giving.abort();
    expect((await sending).error?.message).toMatch("AbortError");
    await here.sim.release();
    await here.kb.close();
    expect((await resend.emails.list()).error?.message).toMatch("closed");
  });

  test("Resend's own limit of requests is told from a cap, and is not repeated", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("rate_limit");
    const result = await createResend(run).emails.send(email);
    expect([result.error?.statusCode, denied(result)]).toEqual([429, null]);
    expect(await here.sim.requests()).toHaveLength(1);
  });
});

describe("keys", () => {
  test("the caller's is forwarded, else ours is derived", async () => {
    await using run = await here.kb.open({ policy });
    const resend = createResend(run);
    await resend.emails.send(email, { idempotencyKey: "order-17" });
    await resend.emails.send({ ...email, subject: "other" });
    const [mine, derived] = (await here.sim.requests()).map((request) => request.idempotency_key);
    expect(mine).toBe("order-17");
    expect(derived).toBeTruthy();
    const again = await resend.emails.send(email, { idempotencyKey: "order-17" });
    expect(again.headers?.["x-keybrake-replayed"]).toBe("true");
    expect(await here.sim.sent()).toHaveLength(2);
  });
});

describe("the client", () => {
  test("is made of a Keybrake and a token too; a base URL of its own is refused", async () => {
    const key = await here.kb.issue(policy);
    const resend = createResend(here.kb, key, { userAgent: "shop/1" });
    expect((await resend.emails.send(email)).error).toBeNull();
    expect(() => createResend(here.kb, key, { baseUrl: "https://evil.example" } as ResendOptions)).toThrow(ConfigError);
  });

  test("the variable that moves the SDK does not move it past the engine", async () => {
    process.env.RESEND_BASE_URL = "http://127.0.0.1:9";
    try {
      await using run = await here.kb.open({ policy });
      expect((await createResend(run).emails.send(email)).error).toBeNull();
    } finally {
      delete process.env.RESEND_BASE_URL;
    }
  });
});

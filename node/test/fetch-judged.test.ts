/** What is judged is what was written: no URL is repaired, no body changed under way, no key joined. */

import { describe, expect, test } from "vitest";
import { createFetch } from "../src/fetch.js";
import { denied, type Run } from "../src/index.js";
import { policy, world } from "./fixture.js";

const REFUNDS = "https://api.stripe.com/v1/refunds";
const here = world();
const wide = { ...policy, allowed_endpoints: ["POST /v1/customers/*", "GET /v1/customers/*", "refunds.create"] };
const init = () => ({ method: "POST", body: new URLSearchParams({ charge: "ch_1" }) });

async function code(run: Run, how: string, url: string): Promise<string | undefined> {
  if (how === "fetch") return denied(await createFetch(run)(url, init()))?.code;
  const verdict = await run.authorize(url, init());
  return verdict.kind === "denied" ? verdict.denied.code : verdict.kind;
}

describe.for(["fetch", "authorize"])("%s", (how) => {
  test.for([
    `https://api.stripe.com/v1/customers/${"../refunds"}`,
    "https://API.stripe.com\\v1/x/%2e%2e/refunds",
    "https://api.stripe.com/v1/customers/%2e%2e/refunds",
    "https://api.stripe.com/v1/./refunds",
    "https://api.stripe.com/v1\\refunds",
    " https://api.stripe.com/v1/refunds",
    "https://api.stripe.com/v1/ref\tunds",
    "HTTPS://api.stripe.com/v1/refunds",
    "https://api.stripe.com/v1/refunds#x",
  ])("does not repair %s: it is refused, and nothing is sent", async (url) => {
    await using run = await here.kb.open({ policy: wide });
    const found = await code(run, how, url);
    expect(["endpoint_not_allowed", "vendor_not_allowed", "request_malformed"]).toContain(found);
    expect(await here.sim.requests()).toEqual([]);
    expect(run.calls.map((call) => call.verdict)).toEqual(["denied"]);
    expect([await run.held(), (await here.kb.audit()).length]).toEqual(["0.00", 1]);
  });
});

test("a URL or a Request is judged as what it holds, which is what is sent", async () => {
  await using run = await here.kb.open({ policy: { ...wide, allowed_endpoints: ["POST /v1/customers/*"] } });
  const url = `https://api.stripe.com/v1/customers/${"../refunds"}`;
  for (const input of [new URL(url), new Request(url, init())]) {
    const refused = denied(await createFetch(run)(input, init()));
    expect([refused?.code, refused?.operation]).toEqual(["endpoint_not_allowed", "refunds.create"]);
  }
  expect(await here.sim.requests()).toEqual([]);
});

test("a buffer that is used again while the call is under way changes nothing", async () => {
  await using run = await here.kb.open({ policy });
  const buffer = Buffer.from("charge=ch_1");
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  const first = createFetch(run)(REFUNDS, { method: "POST", body: buffer, headers });
  buffer.write("charge=ch_2");
  expect(((await (await first).json()) as { charge: string }).charge).toBe("ch_1");
  const again = Buffer.from("charge=ch_3");
  const deciding = run.authorize(REFUNDS, { method: "POST", body: again, headers });
  again.write("charge=ch_4");
  const verdict = await deciding;
  if (verdict.kind !== "permit") throw new Error(verdict.kind);
  expect(((await (await verdict.permit.send()).json()) as { charge: string }).charge).toBe("ch_3");
});

test.for<[string, NonNullable<RequestInit["headers"]>]>([
  [
    "pairs",
    [
      ["Idempotency-Key", "k1"],
      ["idempotency-key", "k2"],
    ],
  ],
  [
    "Headers",
    (() => {
      const both = new Headers({ "idempotency-key": "k1" });
      both.append("idempotency-key", "k2");
      return both;
    })(),
  ],
])("two idempotency keys are refused, given as %s", async ([, headers]) => {
  await using run = await here.kb.open({ policy });
  const reply = await createFetch(run)(REFUNDS, { ...init(), headers });
  expect(denied(reply)?.code).toBe("request_malformed");
  expect(await here.sim.requests()).toEqual([]);
});

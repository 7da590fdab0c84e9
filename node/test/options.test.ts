/** What users get wrong: every mistake that could lose a limit is refused by name, and nothing is sent. */

import { afterEach, expect, test, vi } from "vitest";
import { createFetch } from "../src/fetch.js";
import { ConfigError, Keybrake, type OpenOptions, type Policy, PolicyError } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { policy, rejection, world } from "./fixture.js";

const at = world();
afterEach(() => vi.unstubAllEnvs());

class Tenant {
  daily_usd_cap = 20;
}

/** What a mistake is told, which must be of the kind that names it. */
async function told(work: () => Promise<unknown>): Promise<string> {
  const error = await rejection((async () => work())());
  expect([ConfigError, PolicyError].some((kind) => error instanceof kind)).toBe(true);
  const { message } = error as Error;
  expect(message).not.toMatch(/defect|\[object|Cannot read/);
  return message;
}

const mistaken = (more: object): OpenOptions => ({ policy: { ...policy, ...more } as Policy });

test.each([
  ["undefined", { daily_usd_cap: undefined }, "policy.daily_usd_cap is undefined"],
  ["undefined, deeper", { per_vendor_daily_caps: { stripe: undefined } }, "policy.per_vendor_daily_caps.stripe"],
  ["undefined, in a list", { budgets: [{ usd: undefined, per: "day" }] }, "policy.budgets[0].usd is undefined"],
  ["a Map", { per_vendor_daily_caps: new Map([["stripe", 20]]) }, "not a Map"],
  ["inherited", { per_vendor_daily_caps: Object.create({ stripe: 20 }) }, "an object that inherits from another"],
  ["of a class", { per_vendor_daily_caps: new Tenant() }, "not a Tenant"],
  ["an invalid date", { expires_at: new Date(Number.NaN) }, "policy.expires_at is an invalid Date"],
])("a cap that is %s is refused by its name, never left out", async (_, more, text) => {
  expect(await told(() => at.kb.open(mistaken(more)))).toContain(text);
  expect(await told(() => at.kb.issue(mistaken(more).policy as Policy))).toContain(text);
});

test.each([
  ["a Map", new Map([["vendor", "stripe"]])],
  ["inherited", Object.create(policy)],
  ["null", null],
  ["a number", 5],
])("a policy that is %s is refused", async (_, odd) => {
  expect(await told(() => at.kb.open({ policy: odd as Policy }))).toContain("policy");
});

test("a policy of another realm is a plain object too", async () => {
  const { runInNewContext } = await import("node:vm");
  const foreign = runInNewContext(`(${JSON.stringify(policy)})`) as Policy;
  await using run = await at.kb.open({ policy: foreign });
  expect(await run.cap()).toBe("250.00");
});

test.each([
  ["narrow's cap", { narrow: { run_usd_cap: undefined } }, "narrow.run_usd_cap is undefined"],
  ["narrow's list", { narrow: { allowed_customers: undefined } }, "narrow.allowed_customers is undefined"],
  ["narrow", { narrow: undefined }, "narrow is undefined"],
  ["narrow, null", { narrow: null }, "narrow"],
  ["narrow, a Map", { narrow: new Map([["run_usd_cap", 1]]) }, "not a Map"],
  ["group", { group: undefined }, "group is undefined"],
  ["group, empty", { group: "" }, "group is a text"],
  ["group, in a list", { group: [undefined] }, "group is a text"],
  ["run", { run: undefined }, "run is undefined"],
  ["run, empty", { run: "" }, "run is a text"],
  ["expiresIn", { expiresIn: 5 }, 'expiresIn is a text such as "2h", not 5'],
])("a tie without a value binds nothing, so it is refused: %s", async (_, ties, text) => {
  expect(await told(() => at.kb.open({ policy, ...(ties as object) }))).toContain(text);
  expect(await told(() => at.kb.issue(policy, ties as object))).toContain(text);
});

test.each([
  [{ groups: "tenant:acme" }, "did you mean group?"],
  [{ narow: { run_usd_cap: 1 } }, "did you mean narrow?"],
  [{ expires_in: "2h" }, "did you mean expiresIn?"],
  [{ colour: "red" }, "it takes token, policy"],
])("an option that does not exist is refused with the nearest: %j", async (more, text) => {
  expect(await told(() => at.kb.open({ policy, ...more } as OpenOptions))).toContain(text);
  expect(await told(() => at.kb.run({ policy, ...more } as OpenOptions, () => {}))).toContain(text);
});

test("options that an object inherits are refused with it: they bind nothing", async () => {
  const inherits = Object.create({ policy, group: "tenant:acme" }) as OpenOptions;
  expect(await told(() => at.kb.open(inherits))).toContain("plain object");
});

test("agent_run_id is another name for run, wherever a run is named", async () => {
  const key = await at.kb.issue(policy, { agent_run_id: "run_7" });
  expect(key.run).toBe("run_7");
  await using run = await at.kb.open({ policy, agent_run_id: "run_8" });
  expect(run.id).toBe("run_8");
  expect(await told(() => at.kb.open({ policy, run: "a", agent_run_id: "b" }))).toContain("two names of one thing");
  await createFetch(run)("https://api.stripe.com/v1/charges/ch_1");
  expect(await at.kb.audit({ agent_run_id: "run_8" })).toHaveLength(1);
  expect(await at.kb.audit({ agent_run_id: "run_7" })).toHaveLength(0);
  expect(await at.kb.holds({ agent_run_id: "run_8" })).toEqual([]);
  expect((await at.kb.stop({ agent_run_id: "run_8" })).stop.scope).toBe("run:run_8");
  expect(await at.kb.resume({ agent_run_id: "run_8" })).toBe(true);
});

test.each([
  [{ baseURLs: { stripe: "http://127.0.0.1:1" } }, "did you mean baseUrls?"],
  [{ secret: { stripe: "sk_test_1" } }, "did you mean secrets?"],
  [{ secrets: { stripe: undefined } }, "secrets: stripe is undefined"],
  [{ secrets: { stripe: 5 } }, "secrets: stripe is 5"],
  [{ secrets: new Map([["stripe", "sk_test_1"]]) }, "not a Map"],
  [{ baseUrls: { stripe: undefined } }, "stripe is undefined"],
  [{ baseUrls: { stripe: "" } }, "stripe is a text"],
  [{ baseUrls: { strpie: "http://127.0.0.1:1" } }, "did you mean stripe?"],
  [{ ledger: "" }, "ledger is a text"],
])("a setting that would be lost is refused: %j", (more, text) => {
  expect(() => new Keybrake({ ledger: "memory:", ...(more as object) })).toThrow(text);
  expect(() => new Keybrake({ ledger: "memory:", ...(more as object) })).toThrow(ConfigError);
});

test.each([
  ["stop", { run: "" }, "run is a text"],
  ["stop", { run: undefined, all: true }, "run is undefined"],
  ["stop", { runs: "run_1" }, "did you mean run?"],
  ["stop", { run: "a", label: "b" }, "exactly one of"],
  ["stop", { all: "yes" }, "exactly one of"],
  ["resume", { group: "" }, "group is a text"],
  ["audit", { limit: -1 }, "limit is a whole number from 0"],
  ["audit", { since: new Date(Number.NaN) }, "since is a valid Date"],
  ["audit", { since: "yesterday" }, "since is a valid Date"],
  ["audit", { call_id: "x" }, "did you mean callId?"],
  ["audit", { denied: "yes" }, "denied is true or false"],
  ["holds", { state: "x" }, "state is one of held, unknown"],
])("%s(%j) says what is wrong, instead of doing something else", async (what, argument, text) => {
  const asked = at.kb as unknown as Record<string, (argument: unknown) => Promise<unknown>>;
  expect(await told(async () => asked[what]?.(argument))).toContain(text);
  expect(await at.kb.stops()).toEqual([]);
});

test.each([
  [{ usd: 5 }, "per"],
  [{ usd: 5, per: "week" }, "week"],
  [{ usd: undefined, calls: 5, per: "day" }, "budget.usd is undefined"],
  [{ calls: "5", per: "day" }, "calls"],
  [{ usd: 5, pre: "day" }, "pre"],
])("a budget that cannot be read is refused in words: %j", async (entry, text) => {
  expect(await told(() => at.kb.budgets.set("tenant:acme", [entry as never]))).toContain(text);
  expect(await at.kb.budgets.list()).toEqual([]);
});

test.each([-1, 0.5, Number.NaN, "x", 2 ** 40])("waitMs %s is refused before there is a call", async (waitMs) => {
  await using run = await at.kb.open({ policy });
  const options = { waitMs: waitMs as number };
  for (const make of [createFetch, createStripe]) {
    expect(() => make(run, options)).toThrow("waitMs is a whole number");
    expect(() => make(run, options)).toThrow(ConfigError);
  }
  const url = "https://api.stripe.com/v1/charges/ch_1";
  expect(await told(() => run.authorize(url, {}, options))).toContain("waitMs is a whole number");
  expect(await told(() => run.authorize(url, {}, { waitMS: 5 } as object))).toContain("did you mean waitMs?");
});

test("usage and revoke want the id of a key, and say so when they get the key", async () => {
  const key = await at.kb.issue(policy);
  expect(await told(() => at.kb.usage(key as unknown as string))).toContain("usage: give the id of a key");
  expect(await told(() => at.kb.revoke(key as unknown as string))).toContain("revoke: give the id of a key");
  expect((await at.kb.usage(key.id)).map(({ cap }) => cap)).toContain("250.00");
});

test.each(["VITEST", "JEST_WORKER_ID"])("under %s no call leaves by a base URL that has no value", async (variable) => {
  vi.stubEnv("VITEST", "");
  vi.stubEnv(variable, "1");
  vi.stubEnv("KEYBRAKE_BASE_URL_STRIPE", "");
  for (const baseUrls of [{}, { twilio: at.sim.url }]) {
    await using live = new Keybrake({ ledger: "memory:", secrets: { stripe: "sk_test_1", twilio: "AC:x" }, baseUrls });
    const key = await live.issue(policy).catch(() => null);
    const run = createFetch(live, key ?? "vault_key_x");
    expect(await told(() => run("https://api.stripe.com/v1/charges/ch_1"))).toContain(
      "a test would call api.stripe.com",
    );
  }
});

test("a base URL of the environment holds from the Keybrake on, whatever the variable says later", async () => {
  vi.stubEnv("KEYBRAKE_BASE_URL_STRIPE", at.sim.url);
  await using kb = new Keybrake({ ledger: "memory:", secrets: { stripe: at.sim.secret } });
  vi.unstubAllEnvs();
  await using run = await kb.open({ policy });
  expect((await createFetch(run)("https://api.stripe.com/v1/charges/ch_1")).status).toBe(200);
  expect(await at.sim.requests()).toHaveLength(1);
  // Nor does a variable that comes too late open what the guard has not seen.
  await using live = new Keybrake({ ledger: "memory:", secrets: { stripe: at.sim.secret } });
  vi.stubEnv("KEYBRAKE_BASE_URL_STRIPE", at.sim.url);
  const call = createFetch(live, run.token)("https://api.stripe.com/v1/charges/ch_1");
  expect(await rejection(call)).toMatchObject({ message: expect.stringContaining("a test would call api.stripe.com") });
});

/** Closing: every promise settles, nothing is said to be safe that is not, and one ledger keeps no other waiting. */

import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { createFetch } from "../src/fetch.js";
import { ConfigError, Denied, type HookName } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { policy, rejection, world } from "./fixture.js";

const here = world();
const REFUNDS = "https://api.stripe.com/v1/refunds";
const PDF = "https://files.stripe.com/v1/quotes/qt_1/pdf";
const run = promisify(execFile);
const program = (name: string) => fileURLToPath(new URL(`./programs/${name}.mjs`, import.meta.url));

test("a permit that outlives its Keybrake says so at once, whatever it is told", async () => {
  const run = await here.kb.open({ policy });
  const init = (charge: string) => ({ method: "POST", body: new URLSearchParams({ charge }) });
  const verdicts = await Promise.all(["ch_1", "ch_2", "ch_3"].map((charge) => run.authorize(REFUNDS, init(charge))));
  await here.kb.close();
  const [first, second, third] = verdicts.map((verdict) => {
    if (verdict.kind !== "permit") throw new Error(verdict.kind);
    return verdict.permit;
  });
  for (const told of [first?.lost(), second?.neverSent(), third?.settle({ status: 200, headers: [], body: "{}" })])
    expect(await rejection(told as Promise<unknown>)).toBeInstanceOf(ConfigError);
});

test("a document that outlives its Keybrake ends with an error", async () => {
  const run = await here.kb.open({ policy });
  await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
  const reply = await createFetch(run)(PDF);
  const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
  expect((await reader.read()).value?.byteLength).toBe(1000);
  await here.kb.close();
  expect(await rejection(reader.read())).toBeInstanceOf(ConfigError);
  await here.sim.release();
});

test("a process ends that has closed its Keybrake and left a permit open", async () => {
  const { stdout } = await run(process.execPath, [program("closed"), here.sim.url], { timeout: 30_000 });
  expect(stdout).toBe("ConfigError ConfigError\n");
});

test("an outcome that is being recorded while the Keybrake closes is recorded", async () => {
  const run = await here.kb.open({ policy });
  const verdict = await run.authorize(REFUNDS, { method: "POST", body: new URLSearchParams({ charge: "ch_1" }) });
  if (verdict.kind !== "permit") throw new Error(verdict.kind);
  const reply = await fetch(verdict.permit.request());
  const body = new Uint8Array(await reply.arrayBuffer());
  const settling = verdict.permit.settle({ status: reply.status, headers: reply.headers, body });
  await here.kb.close();
  expect((await settling).status).toBe(200);
  expect(run.calls.map((call) => [call.verdict, call.cost])).toEqual([["allowed", "50.00"]]);
});

test("closed with a refund in flight: the error says that money may have moved", async () => {
  const run = await here.kb.open({ policy });
  await here.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
  const refund = rejection(createStripe(run).refunds.create({ charge: "ch_1" }));
  await here.sim.waitHeld();
  await here.kb.close();
  expect(String(await refund)).toMatch("may have taken effect");
  await here.sim.release();
  expect(await here.sim.requests("/v1/refunds")).toHaveLength(1);
});

test("every close ends with the first one", async () => {
  const ended: number[] = [];
  const closing = [1, 2, 3].map((which) => here.kb.close().then(() => ended.push(which)));
  await Promise.all(closing);
  expect(ended).toEqual([1, 2, 3]);
});

test("at exit, a Keybrake that cannot be closed keeps no other from it", async () => {
  const { stdout, stderr } = await run(process.execPath, [program("exits")]);
  expect(stdout).toBe("the others are closed\n");
  expect(stderr).toBe("keybrake: at exit: the ledger is gone\n");
});

test("a hard stop that breaks a document off is told to every hook, and has its code", async () => {
  const run = await here.kb.open({ policy: { ...policy, label: "papers" } });
  const heard: string[] = [];
  for (const hook of ["call", "denied", "stopped", "unknown"] satisfies HookName[])
    here.kb.on(hook, () => void heard.push(hook));
  await here.sim.fault("hold_body", { method: "GET", chunkBytes: 1000 });
  const reply = await createFetch(run)(PDF);
  const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
  await reader.read();
  const rest = reader.read();
  await here.kb.stop({ label: "papers", hard: true, reason: "wrong papers" });
  const broken = await rejection(rest);
  expect(broken).toBeInstanceOf(Denied);
  expect(broken).toMatchObject({ code: "stopped", aborted: true });
  expect(run.calls.map((call) => [call.verdict, call.code])).toEqual([["unknown", "stopped"]]);
  expect(heard).toEqual(["call", "denied", "unknown", "stopped"]);
  expect(run.signal.aborted).toBe(true);
  await here.sim.release();
});

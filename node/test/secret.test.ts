/** Where the vendor's secret is, and what shows it. */

import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { createFetch } from "../src/fetch.js";
import { ConfigError, Keybrake, Secret } from "../src/index.js";
import { policy, world } from "./fixture.js";

const at = world();
const charge = "https://api.stripe.com/v1/charges/ch_1";
const folder = mkdtempSync(join(tmpdir(), "keybrake-secret-"));
afterEach(() => vi.unstubAllEnvs());
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Whether a call passes with this secret. */
async function serves(secret: Secret): Promise<boolean> {
  await using kb = new Keybrake({ ledger: "memory:", secrets: { stripe: secret }, baseUrls: { stripe: at.sim.url } });
  await using run = await kb.open({ policy });
  return (await createFetch(run)(charge)).status === 200;
}

test("a variable is left where it is, or taken out: then neither this process nor a child has it", async () => {
  vi.stubEnv("SHOP_SECRET", at.sim.secret);
  const left = Secret.env("SHOP_SECRET");
  const taken = Secret.env("SHOP_SECRET", { remove: true });
  expect(await serves(left)).toBe(true);
  expect(process.env.SHOP_SECRET).toBe(at.sim.secret);
  expect(await serves(taken)).toBe(true);
  expect("SHOP_SECRET" in process.env).toBe(false);
  const child = execFileSync(process.execPath, ["-p", "JSON.stringify(process.env)"], { encoding: "utf8" });
  expect(child).not.toContain(at.sim.secret);
  // The one that took it serves again; another finds nothing, and says which variable is missing.
  expect(await serves(taken)).toBe(true);
  const settings = { secrets: { stripe: Secret.env("SHOP_SECRET", { remove: true }) } };
  expect(() => new Keybrake(settings)).toThrow("SHOP_SECRET is not set");
  expect(() => new Keybrake(settings)).toThrow(ConfigError);
});

test("a variable is not taken out where no Keybrake was made", async () => {
  vi.stubEnv("SHOP_SECRET", at.sim.secret);
  const secret = Secret.env("SHOP_SECRET", { remove: true });
  const wrong = [
    { secrets: { stripe: secret, twilio: undefined as never } },
    { secrets: { stripe: secret }, baseUrls: { stripe: "" } },
    { secrets: { stripe: secret }, ledger: "" },
    { secrets: { stripe: secret }, allowLiveInTests: "no" as never },
  ];
  for (const settings of wrong) expect(() => new Keybrake(settings)).toThrow(ConfigError);
  expect(process.env.SHOP_SECRET).toBe(at.sim.secret);
  expect(await serves(Secret.env("SHOP_SECRET", { remove: true }))).toBe(true);
});

test("a file is read by the native module", async () => {
  const path = join(folder, "stripe");
  writeFileSync(path, at.sim.secret);
  chmodSync(path, 0o600);
  expect(await serves(Secret.file(path))).toBe(true);
});

test("nothing that prints a secret shows it", async () => {
  vi.stubEnv("SHOP_SECRET", "sk_test_hidden");
  const taken = Secret.env("SHOP_SECRET", { remove: true });
  const kb = new Keybrake({ ledger: "memory:", secrets: { stripe: taken } });
  const secrets = [taken, Secret.value("sk_test_hidden"), Secret.env("SHOP_SECRET")];
  const options = { showHidden: true, depth: 9, getters: true } as const;
  for (const secret of secrets) {
    const shown = [inspect(secret, options), JSON.stringify({ secret }), `${secret}`, ...Reflect.ownKeys(secret)];
    expect(shown.join()).not.toContain("hidden");
  }
  expect(inspect(kb, options)).not.toContain("hidden");
  await kb.close();
});

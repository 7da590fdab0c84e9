/** Every TypeScript example of docs/node.md and the README runs, in order, against a simulator, as a reader would run it. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { simulator } from "../src/testing.js";

const node = dirname(dirname(fileURLToPath(import.meta.url)));
// Inside the package, so that `keybrake` and the SDKs are found as in a user's project.
const folder = mkdtempSync(join(node, "test", ".docs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const tsx = createRequire(import.meta.url).resolve("tsx/cli");

function blocks(file: string): string[] {
  const text = readFileSync(join(node, "..", file), "utf8");
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((found) => found[1] as string);
}

test.for([["docs/node.md"]])("%s", ([file]) => {
  const found = blocks(file as string);
  expect(found.length).toBeGreaterThan(0);
  using stripe = simulator();
  using twilio = simulator({ vendor: "twilio" });
  using resend = simulator({ vendor: "resend" });
  const [account, token] = twilio.secret.split(":");
  for (const [index, block] of found.entries()) writeFileSync(join(folder, `example-${index + 1}.mts`), block);
  const all = found.map((_, index) => `await import("./example-${index + 1}.mts");`);
  writeFileSync(join(folder, "all.mts"), all.join("\n"));
  const env = {
    ...process.env,
    VITEST: "",
    KEYBRAKE_LEDGER: `sqlite:${join(folder, `${basename(file as string)}.db`)}`,
    KEYBRAKE_JOURNAL_DIR: join(folder, "journal"),
    KEYBRAKE_BASE_URL_STRIPE: stripe.url,
    STRIPE_SECRET_KEY: stripe.secret,
    KEYBRAKE_BASE_URL_TWILIO: twilio.url,
    TWILIO_ACCOUNT_SID: account,
    TWILIO_AUTH_TOKEN: token,
    KEYBRAKE_BASE_URL_RESEND: resend.url,
    RESEND_API_KEY: resend.secret,
  };
  const ran = spawnSync(process.execPath, [tsx, join(folder, "all.mts")], { env, encoding: "utf8" });
  expect(ran.stderr + (ran.error ?? "")).toBe("");
  expect(ran.status).toBe(0);
});

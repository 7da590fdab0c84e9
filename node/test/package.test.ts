// What is published, installed into an empty project outside the repository.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Simulator, simulator } from "../src/testing.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
/** A child that hangs holds this thread: it has to end by itself, before the test's own time is over. */
const MOST_MS = 50_000;
let place: string;
let sim: Simulator;

/** The program of README.md, as it stands there. */
function example(): string {
  const [, program] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(root, "README.md"), "utf8")) ?? [];
  if (!program) throw new Error("README.md has no example");
  return program;
}

function run(program: string, ...args: string[]): string {
  const env = {
    ...process.env,
    STRIPE_SECRET_KEY: sim.secret,
    KEYBRAKE_BASE_URL_STRIPE: sim.url,
    KEYBRAKE_LEDGER: `sqlite:${join(place, "spend.db")}`,
    VITEST: "",
  };
  return execFileSync(program, args, { cwd: place, env, encoding: "utf8", timeout: MOST_MS });
}

beforeAll(async () => {
  sim = simulator();
  place = mkdtempSync(join(tmpdir(), "keybrake-project-"));
  writeFileSync(join(place, "package.json"), '{ "name": "empty", "private": true }\n');
  const packing = [join(root, "scripts", "pack.mjs"), place];
  const packed = execFileSync(process.execPath, packing, { encoding: "utf8", timeout: MOST_MS });
  const tarballs = packed.trim().split("\n");
  run("npm", "install", "--offline", "--no-audit", "--no-fund", "--no-package-lock", ...tarballs);
  // The SDK and the types of Node, as the project would have installed them from the registry.
  for (const name of ["stripe", "@types/node", "undici-types"]) {
    mkdirSync(join(place, "node_modules", "@types"), { recursive: true });
    symlinkSync(join(root, "node_modules", name), join(place, "node_modules", name));
  }
}, 120_000);

afterAll(() => {
  sim.stop();
  rmSync(place, { recursive: true, force: true });
});

/** Runs the example on new books: its loop refunds until the cap stops it, and says so. */
async function spends(file: string): Promise<void> {
  for (const part of readdirSync(place)) if (part.startsWith("spend.db")) rmSync(join(place, part));
  await sim.reset();
  await sim.charges(10, 5000);
  const lines = run(process.execPath, file).trimEnd().split("\n");
  const words =
    /^NOT DONE\. Spending limit reached: this refund of \$50\.00 was refused before it was sent; .*Tell the user\.$/;
  expect(lines).toEqual([
    expect.stringMatching(/^cap_exceeded 0\.00 \d{4}-\d\d-\d\dT00:00:00\.000Z$/),
    expect.stringMatching(words),
    "250.00 of 250.00",
  ]);
  expect([await sim.movements(), await sim.moved()]).toEqual([5, 25_000]);
}

test("the README's example runs with import", async () => {
  writeFileSync(join(place, "example.mts"), example());
  writeFileSync(join(place, "example.mjs"), example());
  await spends("example.mjs");
});

test("the README's example runs with require", async () => {
  const program = example().replace(/import \{ (.*) \} from "(.*)";/g, 'const { $1 } = require("$2");');
  writeFileSync(join(place, "example.cjs"), program);
  await spends("example.cjs");
});

test("import and require of one process share errors, context and the default Keybrake", () => {
  const program = `
    import { createRequire } from "node:module";
    import * as esm from "keybrake";
    const cjs = createRequire(import.meta.url)("keybrake");
    const error = await new cjs.Keybrake({ ledger: "nonsense:" }).ready().catch((error) => error);
    console.log(error instanceof esm.ConfigError, error instanceof cjs.KeybrakeError, error instanceof esm.Denied);
    console.log(esm.defaultKeybrake() === cjs.defaultKeybrake());
    const run = await cjs.open({ policy: { vendor: "stripe", label: "both", daily_usd_cap: 5, allowed_endpoints: ["reads"] } });
    console.log(run.within(() => esm.currentRun()) === run);
    await run.close();
  `;
  writeFileSync(join(place, "both.mjs"), program);
  expect(run(process.execPath, "both.mjs").trim().split("\n")).toEqual(["true true false", "true", "true"]);
});

test("what one build made is understood by the other: Secret, Agent, Run, and their errors", () => {
  const program = `
    import { createRequire } from "node:module";
    import * as esm from "keybrake";
    import * as esmFetch from "keybrake/fetch";
    const require = createRequire(import.meta.url);
    const [cjs, cjsFetch] = [require("keybrake"), require("keybrake/fetch")];
    const policy = { vendor: "stripe", label: "dual", daily_usd_cap: 5, allowed_endpoints: ["reads"] };
    for (const [one, other, otherFetch] of [[esm, cjs, cjsFetch], [cjs, esm, esmFetch]]) {
      const settings = { secrets: { stripe: one.Secret.env("STRIPE_SECRET_KEY") } };
      const kb = new other.Keybrake(settings);
      const { token } = await kb.issue(policy);
      const agent = one.Keybrake.agent();
      const run = await agent.open(token);
      const fetches = [otherFetch.createFetch(agent, token), otherFetch.createFetch(run), otherFetch.createFetch(one.defaultKeybrake(), token)];
      for (const fetch of fetches) console.log((await fetch("https://api.stripe.com/v1/charges/ch_1")).status);
      await agent.close();
      await kb.close();
    }
  `;
  writeFileSync(join(place, "dual.mjs"), program);
  expect(run(process.execPath, "dual.mjs").trim().split("\n")).toEqual(Array(6).fill("200"));
});

test.each(["call", "engine", "keybrake", "front", "inside", "errors", "native.cjs", "edge"])(
  "keybrake/%s is nobody's to import",
  (internal) => {
    const program = `
      try { require("keybrake/${internal}"); } catch (error) { console.log(error.code); }
      import("keybrake/${internal}").catch((error) => console.log(error.code));
    `;
    const printed = run(process.execPath, "-e", program).trim().split("\n");
    expect(printed).toEqual(Array(2).fill("ERR_PACKAGE_PATH_NOT_EXPORTED"));
  },
);

test.each([
  ["node16", "node16", "example.mts"],
  ["nodenext", "nodenext", "example.mts"],
  ["esnext", "bundler", "example.mts"],
  ["commonjs", "bundler", "example.cts"],
])("the README's example type-checks in strict mode: module %s, resolution %s", (module, resolution, file) => {
  writeFileSync(join(place, file), example());
  const options = ["--strict", "--noEmit", "--target", "es2022", "--skipLibCheck", "false", "--types", "node"];
  run(process.execPath, tsc, ...options, "--module", module, "--moduleResolution", resolution, file);
});

test("the command line is the same program", () => {
  expect(run(join(place, "node_modules", ".bin", "keybrake"), "--version")).toMatch(/^keybrake \d/);
  expect(run(join(place, "node_modules", ".bin", "keybrake"), "spend", "--json")).toContain("{");
});

test.each(["edge-light", "workerd", "browser"])("%s gets the error that helps", (condition) => {
  const program = 'import("keybrake/stripe").catch((error) => console.log(error.message))';
  expect(run(process.execPath, "-C", condition, "-e", program)).toMatch(/runtime = "nodejs"/);
});

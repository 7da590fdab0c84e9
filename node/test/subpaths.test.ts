import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";

/** Where the package is installed as published (`scripts/examples.mjs`). */
const cwd = join(import.meta.dirname, "..", "..", "examples", "node");

test.each([
  ["keybrake/ai", ["ToolDenied", "governTools", "stopOnDenied"]],
  ["keybrake/langchain", ["keybrakeMiddleware", "retryOn"]],
  ["keybrake/next", ["withVaultKey"]],
  ["keybrake/next/config", ["withKeybrake"]],
  ["keybrake/testing", ["Simulator", "TestKeybrake", "simulator", "testKeybrake"]],
])("%s loads with import and with require, and exports the same", (subpath, names) => {
  const program = `
    import { createRequire } from "node:module";
    const byRequire = createRequire(process.cwd() + "/x.js")(${JSON.stringify(subpath)});
    const byImport = await import(${JSON.stringify(subpath)});
    console.log(JSON.stringify([Object.keys(byImport).sort(), Object.keys(byRequire).sort()]));
  `;
  const printed = execFileSync(process.execPath, ["--input-type=module", "-e", program], { cwd, encoding: "utf8" });
  expect(JSON.parse(printed)).toEqual([names, names]);
});

// The npm package in other runtimes than Node: the same program, the same native module, the same results.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const installed = fileURLToPath(new URL("../node_modules/.bin/", import.meta.url));
const program = fileURLToPath(new URL("./programs/reach.mjs", import.meta.url));

// Fifty refunds of a dollar at once under a cap of 20.00, a streamed fetch, its answers served on, an aborted one, attribution, an error, a
// worker that is terminated during a call.
const EXPECTED = `\
refunds 20 refused by the cap 30
moved 2000 requests 20
fetch 200 true
served 200 true true
served 429 cap_exceeded true
aborted AbortError
attributed true
error true
spent 20.00 holds 0
worker ended number
end
`;

test.each([
  ["Node", process.execPath, []],
  ["Bun", `${installed}bun`, []],
  ["Deno", `${installed}deno`, ["run", "--allow-all", "--quiet"]],
])("%s runs governed calls, streams, aborts and workers", { timeout: 150_000 }, (_, runtime, options) => {
  // Deno and Bun look at VITEST too, through the package: they are not under test themselves.
  const env = { ...process.env, VITEST: "", NO_COLOR: "1" };
  expect(execFileSync(runtime, [...options, program], { env, encoding: "utf8", timeout: 120_000 })).toBe(EXPECTED);
});

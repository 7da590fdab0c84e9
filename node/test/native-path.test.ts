/** How the native module is found, in processes that have work already when they import the package. */

import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";

const finder = join(import.meta.dirname, "..", "src", "native-path.cjs");
const glibc = (process.report.getReport() as { header: { glibcVersionRuntime?: string } }).header.glibcVersionRuntime;
const abi = process.platform === "linux" ? (glibc ? "-gnu" : "-musl") : "";

/** What a program prints as JSON, in a process of its own. */
function printed(program: string): unknown {
  const found = `require(${JSON.stringify(finder)}).nativePath()`;
  const text = program.replaceAll("FOUND", found);
  return JSON.parse(execFileSync(process.execPath, ["-e", text], { encoding: "utf8" }));
}

test("importing takes no report of the process, whose look-up of each open connection blocks the event loop", () => {
  const program = `
    let reports = 0;
    process.report.getReport = () => { reports += 1; return { header: {} }; };
    const path = FOUND;
    console.log(JSON.stringify({ path, reports }));
  `;
  const { path, reports } = printed(program) as { path: string; reports: number };
  expect(path).toContain(`keybrake.${process.platform}-${process.arch}${abi}.node`);
  expect(reports).toBe(0);
});

test("where the report is needed, it leaves connections out, and the setting is put back", () => {
  const program = `
    const seen = [];
    const real = process.report.getReport.bind(process.report);
    process.report.getReport = () => { seen.push(process.report.excludeNetwork); return real(); };
    process.execPath = "/there/is/no/such/program";
    const path = FOUND;
    console.log(JSON.stringify({ path, seen, after: process.report.excludeNetwork ?? false }));
  `;
  const { path, seen, after } = printed(program) as { path: string; seen: unknown[]; after: boolean };
  expect(path).toContain(`keybrake.${process.platform}-${process.arch}${abi}.node`);
  if (process.platform === "linux") expect(seen).toEqual([true]);
  expect(after).toBe(false);
});

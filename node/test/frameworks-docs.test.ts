import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..", "..");

test("every example of docs/node-frameworks.md type-checks in strict mode, against the installed package", () => {
  const text = readFileSync(join(root, "docs", "node-frameworks.md"), "utf8");
  const blocks = [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map(([, code]) => code as string);
  expect(blocks.length).toBeGreaterThanOrEqual(7);
  // Beside the examples, whose packages are installed as a user's are.
  const place = mkdtempSync(join(root, "examples", "node", ".docs-"));
  try {
    blocks.forEach((code, index) => {
      writeFileSync(join(place, `block_${index}.ts`), code);
    });
    const compilerOptions = {
      strict: true,
      noEmit: true,
      target: "es2022",
      lib: ["es2023", "esnext.disposable", "dom"],
    };
    const more = { module: "esnext", moduleResolution: "bundler", skipLibCheck: true, types: ["node"] };
    writeFileSync(join(place, "tsconfig.json"), JSON.stringify({ compilerOptions: { ...compilerOptions, ...more } }));
    const tsc = join(root, "node", "node_modules", "typescript", "bin", "tsc");
    execFileSync(process.execPath, [tsc, "-p", place], { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    throw new Error((error as { stdout?: string }).stdout || String(error));
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
});

// Builds the ESM and the CommonJS half of the package, each with its own type declarations.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const tsc = join(root, "node_modules", "typescript", "bin", "tsc");

const loaders = ["native.cjs", "native.d.cts", "native-path.cjs", "native-path.d.cts"];

rmSync(join(root, "dist"), { recursive: true, force: true });
for (const [kind, type] of [
  ["esm", "module"],
  ["cjs", "commonjs"],
]) {
  const out = join(root, "dist", kind);
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, "package.json"), `${JSON.stringify({ type, sideEffects: false })}\n`);
  for (const loader of loaders) copyFileSync(join(root, "src", loader), join(out, loader));
  execFileSync(process.execPath, [tsc, "-p", `tsconfig.${kind}.json`], { cwd: root, stdio: "inherit" });
}

// Installs the package into examples/node as a user would get it: the files that are published, in node_modules. The
// packages that the examples need besides are links to those that are here already, so that nothing is loaded twice.
import { cpSync, linkSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const modules = join(root, "..", "examples", "node", "node_modules");
const { files, version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

rmSync(modules, { recursive: true, force: true });
const installed = join(modules, "keybrake");
mkdirSync(installed, { recursive: true });
for (const name of ["package.json", ...files]) {
  cpSync(join(root, name), join(installed, name), { recursive: true });
}
// The native module, in the package of its platform. Large: a second name for the file where the file system has that.
for (const binary of readdirSync(join(root, "native")).filter((name) => name.startsWith("keybrake."))) {
  const name = binary.replace(/^keybrake\.(.+)\.node$/, "@keybrake/$1");
  const place = join(modules, name);
  mkdirSync(place, { recursive: true });
  writeFileSync(join(place, "package.json"), JSON.stringify({ name, version, main: binary }));
  const [from, to] = [join(root, "native", binary), join(place, binary)];
  try {
    linkSync(from, to);
  } catch {
    cpSync(from, to);
  }
}
for (const name of readdirSync(join(root, "node_modules"))) {
  if (name === "keybrake" || (name.startsWith(".") && name !== ".bin")) continue;
  symlinkSync(join(relative(modules, root), "node_modules", name), join(modules, name));
}

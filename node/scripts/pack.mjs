// Packs what is published: `keybrake`, and one package with the native module of each platform that is in native/.
// Writes the tarballs to the folder given (tarballs/ by default) and prints their paths.
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const out = resolve(process.argv[2] ?? join(root, "tarballs"));
const staging = mkdtempSync(join(tmpdir(), "keybrake-pack-"));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const licences = ["LICENSE-APACHE", "LICENSE-MIT"];

function pack(name, fill) {
  const place = join(staging, name.replace("/", "-"));
  mkdirSync(place);
  for (const licence of licences) cpSync(join(root, "..", licence), join(place, licence));
  writeFileSync(join(place, "package.json"), `${JSON.stringify(fill(place), null, 2)}\n`);
  const printed = execFileSync("npm", ["pack", "--json", "--pack-destination", out], {
    cwd: place,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  console.log(join(out, JSON.parse(printed)[0].filename));
}

function platform(binary) {
  const [, target] = /^keybrake\.(.+)\.node$/.exec(binary);
  const [os, cpu, abi] = target.split("-");
  const name = `@keybrake/${target}`;
  pack(name, (place) => {
    cpSync(join(root, "native", binary), join(place, binary));
    const { version, license, repository, engines } = manifest;
    const libc = abi === "gnu" ? { libc: ["glibc"] } : abi === "musl" ? { libc: ["musl"] } : {};
    const what = { name, version, description: `The native module of keybrake for ${target}`, license, repository };
    return { ...what, engines, os: [os], cpu: [cpu], ...libc, main: binary, files: [binary] };
  });
  return name;
}

try {
  mkdirSync(out, { recursive: true });
  if (!existsSync(join(root, "dist"))) throw new Error("nothing is built yet: make setup-node");
  const names = readdirSync(join(root, "native"))
    .filter((file) => file.startsWith("keybrake."))
    .map(platform);
  pack("keybrake", (place) => {
    for (const part of ["bin", "dist", "README.md"]) cpSync(join(root, part), join(place, part), { recursive: true });
    const { devDependencies: _development, scripts: _scripts, ...published } = manifest;
    return { ...published, optionalDependencies: Object.fromEntries(names.map((name) => [name, manifest.version])) };
  });
} finally {
  rmSync(staging, { recursive: true, force: true });
}

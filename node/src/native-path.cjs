// Where the native module of this platform is: the one built here, or the optional package that npm installed for it.
"use strict";
const { existsSync } = require("node:fs");
const { join } = require("node:path");

function libc() {
  if (process.platform !== "linux") return "";
  const glibc = process.report?.getReport()?.header?.glibcVersionRuntime;
  return glibc ? "-gnu" : "-musl";
}

const target = `${process.platform}-${process.arch}${libc()}`;
// From src (tests) and from dist/esm or dist/cjs alike.
const places = ["..", join("..", "..")].map((up) => join(__dirname, up, "native", `keybrake.${target}.node`));
const local = places.find((place) => existsSync(place));

/** Its path; throws where there is none. */
function nativePath() {
  if (local) return local;
  try {
    return require.resolve(`@keybrake/${target}`);
  } catch (error) {
    throw new Error(
      `Keybrake has no native module for ${target}: neither ${places[1]} nor the package @keybrake/${target} is there. ` +
        "Install with optional dependencies (not `--omit=optional`), on the platform that will run it. Bundlers must " +
        "leave the package `keybrake` out of the bundle (Next.js: `withKeybrake` from keybrake/next/config).",
      { cause: error },
    );
  }
}

module.exports = { nativePath };

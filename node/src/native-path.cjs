// Where the native module of this platform is: the one built here, or the optional package that npm installed for it.
"use strict";
const { closeSync, existsSync, openSync, readSync } = require("node:fs");
const { join } = require("node:path");

/** Node's own loader says by which C library it was linked; only where that is unclear, the costly report does. */
function libc() {
  if (process.platform !== "linux") return "";
  const loader = /\/ld-(musl|linux)/.exec(headOf(process.execPath))?.[1];
  return (loader ? loader === "linux" : reportsGlibc()) ? "-gnu" : "-musl";
}

/** The beginning of a program, where ELF has the name of its loader. */
function headOf(program) {
  const head = Buffer.alloc(4096);
  let file;
  try {
    file = openSync(program, "r");
    return head.toString("latin1", 0, readSync(file, head, 0, head.length, 0));
  } catch {
    return "";
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/** The report names every open socket's peer, which takes a DNS look-up each and blocks meanwhile: not asked for. */
function reportsGlibc() {
  const { report } = process;
  if (!report) return false;
  const before = report.excludeNetwork;
  report.excludeNetwork = true;
  try {
    return report.getReport().header.glibcVersionRuntime !== undefined;
  } finally {
    report.excludeNetwork = before;
  }
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

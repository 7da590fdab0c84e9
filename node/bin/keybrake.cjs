#!/usr/bin/env node
// The command line: the same program as `keybrake` from cargo or pip.
"use strict";
const native = require("../dist/cjs/native.cjs");

// Node ends a process by a handler of its own that raises the signal again. The program's handler would call that one,
// and be called by it, for ever. A listener that comes and goes leaves the system's default behind.
for (const signal of ["SIGINT", "SIGTERM"]) {
  const nothing = () => {};
  process.on(signal, nothing).off(signal, nothing);
}

process.exitCode = native.cli(["keybrake", ...process.argv.slice(2)]);

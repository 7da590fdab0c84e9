#!/usr/bin/env node
// The command line: the same program as `keybrake` from cargo or pip.
"use strict";
const native = require("../dist/cjs/native.cjs");

process.exitCode = native.cli(["keybrake", ...process.argv.slice(2)]);

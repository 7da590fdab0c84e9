// Loads the native module of this platform.
"use strict";
const { nativePath } = require("./native-path.cjs");

module.exports = require(nativePath());

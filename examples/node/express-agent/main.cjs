"use strict";
const { Keybrake } = require("keybrake");
const { createApp } = require("./app.cjs");

// The ledger and Stripe's secret come from the environment: KEYBRAKE_LEDGER, STRIPE_SECRET_KEY.
createApp(new Keybrake()).listen(3000, "127.0.0.1", () => console.log("http://127.0.0.1:3000"));

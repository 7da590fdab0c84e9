// An Express server whose agents each spend by a vault key of their own.
"use strict";
const express = require("express");
const { denied } = require("keybrake");
const { createStripe } = require("keybrake/stripe");

const policy = {
  vendor: "stripe",
  daily_usd_cap: 1000,
  allowed_endpoints: ["refunds.create", "reads"],
  label: "support-agent",
};

/**
 * Middleware: `res.locals.run` for the time of one request. The key is revoked when the response is over or its client
 * has gone away, whichever comes first.
 */
function withRun(keybrake, options) {
  return async (req, res, next) => {
    const run = await keybrake.open(await options(req));
    res.locals.run = run;
    const close = () =>
      run.close().catch((error) => console.error("not revoked, ends when it expires:", error.message));
    if (res.closed) await close();
    else res.once("close", close);
    // What follows knows the run, so that clients which were made without it are attributed to it.
    run.within(next);
  };
}

function createApp(keybrake) {
  const app = express();
  app.use(express.json());

  const perChat = async (req) => ({
    policy,
    run: `chat_${req.params.chat}`,
    narrow: { run_usd_cap: 25 },
    expiresIn: "15m",
  });
  // The agent: it refunds what it was asked to, one after the other, and says each result as it comes.
  app.post("/chats/:chat/refunds", withRun(keybrake, perChat), async (req, res) => {
    const { run } = res.locals;
    const stripe = createStripe(run);
    res.type("application/x-ndjson");
    for (const charge of req.body.charges) {
      if (run.signal.aborted) break;
      try {
        const { id, amount } = await stripe.refunds.create({ charge });
        res.write(`${JSON.stringify({ charge, refund: id, cents: amount })}\n`);
      } catch (error) {
        const refusal = denied(error);
        if (!refusal) throw error;
        res.write(`${JSON.stringify({ charge, code: refusal.code, words: refusal.forModel() })}\n`);
        break; // a refusal is final for the run
      }
    }
    res.end();
  });

  // No key is issued while a run is stopped.
  app.use((error, _req, res, next) => {
    const refusal = denied(error);
    if (!refusal) return next(error);
    // In words for whoever asked: the message names the operator and the reason.
    res.status(refusal.status).json({ error: refusal.forModel() });
  });
  return app;
}

module.exports = { createApp };

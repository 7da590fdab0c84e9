// What every runtime that loads the npm package must do: the same program prints the same lines under Node, Bun and
// Deno (test/runtimes.test.ts). The simulator's journal is the truth about what moved.
import { once } from "node:events";
import { createServer } from "node:http";
import { Worker } from "node:worker_threads";
import { createFetch } from "../../dist/esm/fetch.js";
import { currentRun, denied, Keybrake, KeybrakeError } from "../../dist/esm/index.js";
import { createStripe } from "../../dist/esm/stripe.js";
import { simulator } from "../../dist/esm/testing.js";

/** The runtime's own server. */
async function serve(answer) {
  const hostname = "127.0.0.1";
  if (globalThis.Deno) {
    const server = globalThis.Deno.serve({ hostname, port: 0, onListen: () => {} }, answer);
    return { url: `http://${hostname}:${server.addr.port}`, close: () => server.shutdown() };
  }
  if (globalThis.Bun) {
    const server = globalThis.Bun.serve({ hostname, port: 0, fetch: answer });
    return { url: server.url.href, close: () => server.stop(true) };
  }
  const server = createServer(async (_request, reply) => {
    const { status, headers, body } = await answer();
    reply.writeHead(status, Object.fromEntries(headers));
    for await (const piece of body) reply.write(piece);
    reply.end();
  });
  server.listen(0, hostname);
  await once(server, "listening");
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `http://${hostname}:${server.address().port}`, close };
}

const sim = simulator();
const kb = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
const run = await kb.open({
  policy: { vendor: "stripe", label: "reach", daily_usd_cap: 20, allowed_endpoints: ["refunds.create", "reads"] },
});
const stripe = createStripe(run, { maxNetworkRetries: 2 });
const charges = await sim.charges(51, 5000);

// Fifty at once, and room for twenty.
const ended = await Promise.allSettled(
  charges.slice(0, 50).map((charge) => stripe.refunds.create({ charge, amount: 100 })),
);
const refusals = ended.filter((end) => end.status === "rejected").map((end) => denied(end.reason)?.code);
const byCap = refusals.filter((code) => code === "cap_held" || code === "cap_exceeded");
console.log("refunds", ended.length - refusals.length, "refused by the cap", byCap.length);
console.log("moved", await sim.moved(), "requests", (await sim.requests("/v1/refunds", "POST")).length);

// The drop-in for fetch, streamed.
const fetch = createFetch(run);
const reply = await fetch("https://api.stripe.com/v1/charges?limit=3");
let bytes = 0;
for await (const piece of reply.body) bytes += piece.length;
console.log("fetch", reply.status, bytes > 100);

// What the governed fetch answers, served on: the runtime reads the response itself, in whatever way it does.
const proxied = [
  () => fetch(`https://api.stripe.com/v1/charges/${charges[0]}`),
  () =>
    fetch("https://api.stripe.com/v1/refunds", { method: "POST", body: new URLSearchParams({ charge: charges[50] }) }),
];
const front = await serve(() => proxied.shift()());
const receipt = await globalThis.fetch(front.url);
const object = await receipt.json();
console.log("served", receipt.status, object.id === charges[0], receipt.headers.has("x-keybrake-call-id"));
const refusal = await globalThis.fetch(front.url);
console.log("served", refusal.status, denied(await refusal.json())?.code, refusal.headers.get("x-keybrake-cap-hit"));
await front.close();

// A call that is aborted.
await sim.fault("hold_until_released", { method: "GET", pathPrefix: "/v1/charges" });
const stop = new AbortController();
const aborted = fetch("https://api.stripe.com/v1/charges", { signal: stop.signal }).catch((error) => error.name);
await sim.waitHeld();
stop.abort();
console.log("aborted", await aborted);
await sim.release();

// Attribution through timers and promises.
const inside = await run.within(async () => {
  await new Promise((resolve) => setTimeout(resolve, 1));
  return currentRun();
});
console.log("attributed", inside === run);
console.log(
  "error",
  (await new Keybrake({ ledger: "nonsense:" }).ready().catch((error) => error)) instanceof KeybrakeError,
);
console.log("spent", String(await run.spent()), "holds", (await kb.holds()).length);
await run.close();
await kb.close();

// A worker that is terminated in the middle of a call leaves its hold and the process in order.
await sim.fault("hold_until_released", { method: "POST", pathPrefix: "/v1/refunds" });
const worker = new Worker(new URL("./reach_worker.mjs", import.meta.url), {
  workerData: { url: sim.url, charge: charges[50] },
});
await sim.waitHeld();
console.log("worker ended", typeof (await worker.terminate()));
await sim.release();
sim.stop();
console.log("end");

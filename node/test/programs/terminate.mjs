// Starts workers that make governed calls, and terminates each in the middle of one. argv: simulator URL, how many.
// A crash of the native module is a crash of this process.
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

const AT_ONCE = 4;

async function worker() {
  const { Keybrake } = await import("../../dist/esm/index.js");
  const { governed } = await import("../../dist/esm/call.js");
  const kb = new Keybrake({
    ledger: "memory:",
    secrets: { stripe: "sk_test_simulator" },
    baseUrls: { stripe: workerData },
  });
  const run = await kb.open({ policy: { vendor: "stripe", daily_usd_cap: 250, allowed_endpoints: ["reads"] } });
  const call = {
    method: "GET",
    url: "https://api.stripe.com/v1/balance",
    headers: [["Authorization", `Bearer ${run.token}`]],
    body: new Uint8Array(0),
    keyOrigin: "unknown",
    run,
  };
  parentPort.postMessage("calling");
  for (;;) await Promise.all([governed(kb, call), governed(kb, call), run.spent()]);
}

async function terminated(url) {
  const started = new Worker(fileURLToPath(import.meta.url), { workerData: url });
  await once(started, "message");
  await new Promise((resolve) => setTimeout(resolve, Math.random() * 8));
  await started.terminate();
}

if (isMainThread) {
  const [url, count] = process.argv.slice(2);
  let left = Number(count);
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      while (left-- > 0) await terminated(url);
    }),
  );
  console.log("terminated", count);
} else await worker();

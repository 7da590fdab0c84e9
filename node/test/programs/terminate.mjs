// Starts workers that refund, and terminates each in the middle of it. argv: simulator URL, ledger URL, key, charges.
// A crash of the native module is a crash of this process. What the ledger then says is the test's to compare.
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

const AT_ONCE = 4;

async function worker() {
  const { Keybrake } = await import("../../dist/esm/index.js");
  const { governed } = await import("../../dist/esm/call.js");
  const { url, ledger, token, charge } = workerData;
  const kb = new Keybrake({ ledger, secrets: { stripe: "sk_test_simulator" }, baseUrls: { stripe: url } });
  const run = await kb.open({ token });
  const refund = governed(kb, {
    method: "POST",
    url: "https://api.stripe.com/v1/refunds",
    headers: [
      ["Authorization", `Bearer ${run.token}`],
      ["Content-Type", "application/x-www-form-urlencoded"],
    ],
    body: Buffer.from(`charge=${charge}&amount=10`),
    keyOrigin: "unknown",
    run,
  });
  const asked = run.spent();
  parentPort.postMessage("calling");
  await Promise.allSettled([refund, asked]);
  // Not before it is terminated.
  await once(parentPort, "message");
}

async function started(charge) {
  const [url, ledger, token] = process.argv.slice(2);
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: { url, ledger, token, charge } });
  await once(worker, "message");
  return worker;
}

if (isMainThread) {
  const [url, , , list] = process.argv.slice(2);
  const { Simulator } = await import("../../dist/esm/testing.js");
  const sim = new Simulator(url);
  const charges = list.split(",");
  for (let batch = 0; batch * AT_ONCE < charges.length; batch += 1) {
    const mine = charges.slice(batch * AT_ONCE, (batch + 1) * AT_ONCE);
    // In turn: as soon as the call has begun, and when the vendor has it and has not answered.
    const held = batch % 2 === 1;
    if (held) await sim.fault("hold_until_released", { times: mine.length });
    const workers = await Promise.all(mine.map(started));
    if (held) await sim.waitHeld(mine.length);
    await Promise.all(workers.map((worker) => worker.terminate()));
    if (held) await sim.release();
  }
  console.log("terminated", charges.length);
} else await worker();

// Exits with two engines open, of which the first cannot be closed.
import "../../dist/esm/index.js";

const engines = globalThis[Symbol.for("keybrake.engines")];
engines.add({
  closeNow() {
    throw new Error("the ledger is gone");
  },
});
engines.add({ closeNow: () => console.log("the others are closed") });

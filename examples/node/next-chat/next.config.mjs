import { join } from "node:path";
import { withKeybrake } from "keybrake/next/config";

// Only because the packages of all examples are links to those of this repository; an application of its own needs
// nothing but `withKeybrake({})`.
const root = join(import.meta.dirname, "../../..");

export default withKeybrake({ turbopack: { root }, outputFileTracingRoot: root });

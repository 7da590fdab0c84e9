/**
 * Next.js's build with Keybrake in it: `export default withKeybrake({ ...nextConfig })`.
 *
 * The native module cannot be bundled, so `keybrake` stays a package that the server loads from `node_modules`. The
 * SDKs that it extends stay there with it, so that there is one copy of each and `instanceof` on their errors holds.
 */

import { dirname, relative } from "node:path";
import { nativePath } from "./native-path.cjs";

/** What this module reads and sets of a `NextConfig`. */
interface Config {
  serverExternalPackages?: string[];
  transpilePackages?: string[];
  outputFileTracingIncludes?: Record<string, string[]>;
}

/** The package, and the SDKs that its modules import. Those that are not installed do no harm. */
const EXTERNAL = ["keybrake", "stripe", "twilio", "resend", "langchain", "@langchain/core"];

/** A Next.js configuration (an object, or a function that makes one) with what Keybrake needs. */
export function withKeybrake<C extends object>(config?: C): C;
export function withKeybrake<C extends object, A extends unknown[]>(
  config: (...args: A) => C | Promise<C>,
): (...args: A) => Promise<C>;
export function withKeybrake(config: object | ((...args: unknown[]) => unknown) = {}): unknown {
  if (typeof config === "function") {
    const make = config as (...args: unknown[]) => Config | Promise<Config>;
    return async (...args: unknown[]) => extended(await make(...args));
  }
  return extended(config);
}

function extended(config: Config): Config {
  const { serverExternalPackages = [], transpilePackages = [], outputFileTracingIncludes = {} } = config;
  // Next.js refuses a package that is in both lists; an SDK that the application has bundled stays so.
  const external = EXTERNAL.filter((name) => !transpilePackages.includes(name));
  const everywhere = outputFileTracingIncludes["/**"] ?? [];
  const native = nativeFiles();
  return {
    ...config,
    serverExternalPackages: [...new Set([...serverExternalPackages, ...external])],
    outputFileTracingIncludes: {
      ...outputFileTracingIncludes,
      "/**": [...new Set([...everywhere, ...native])],
    },
  };
}

/**
 * What no trace of `require` finds, for `output: "standalone"` and serverless functions: the folder of the native
 * module, as seen from the application, in which the build runs. Without one here, loading it will say what is missing.
 */
function nativeFiles(): string[] {
  try {
    const place = relative(process.cwd(), dirname(nativePath())).replaceAll("\\", "/");
    return [`${place.startsWith(".") ? place : `./${place}`}/*`];
  } catch {
    return [];
  }
}

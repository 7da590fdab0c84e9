/** Where a vendor's real secret comes from. Prefer a file: then it never becomes a JavaScript string. */

import { inspect } from "node:util";
import { ConfigError } from "./errors.js";
import { keep, kept } from "./inside.js";
import { shown } from "./options.js";

/** Where a secret is, or what it is: what the native module is told. */
type Setting = { env: string } | { file: string } | { value: string };

/** A reference to a vendor's secret; neither `inspect`, nor JSON, nor string conversion shows a value. */
export class Secret {
  private constructor(setting: Setting) {
    keep(this, Object.freeze(setting));
  }

  /** From an environment variable, read when the ledger is opened. It stays there, for all code of the process to read. */
  static env(name: string): Secret {
    return new Secret({ env: name });
  }

  /** From a file that only its owner may read; read by the native module. */
  static file(path: string): Secret {
    return new Secret({ file: path });
  }

  /** Given here. It is then a JavaScript string, which nothing can wipe. */
  static value(secret: string): Secret {
    return new Secret({ value: secret });
  }

  /** @internal For the native module. Not by `instanceof`: it may come from the other build of this package. */
  static setting(secret: Secret | string, name: string): Record<string, string> {
    const found = typeof secret === "string" ? { value: secret } : kept(secret);
    const [kind, text] = typeof found === "object" && found !== null ? (Object.entries(found)[0] ?? []) : [];
    if (!["env", "file", "value"].includes(String(kind)))
      throw new ConfigError(
        `secrets: ${name} is ${shown(secret)}; give the secret, Secret.file(path) or Secret.env(name)`,
      );
    if (typeof text === "string" && text !== "") return { [kind as string]: text };
    throw new ConfigError(`secrets: ${name} has no text; is the variable that it comes from set?`);
  }

  toString(): string {
    const setting = kept(this) as Partial<Record<"env" | "file", string>>;
    const [kind, text] = Object.entries(setting)[0] ?? [];
    return kind === "value" ? "Secret.value(...)" : `Secret.${kind}(${JSON.stringify(text)})`;
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

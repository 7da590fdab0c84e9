/** Where a vendor's real secret comes from. Prefer a file: then it never becomes a JavaScript string. */

import { inspect } from "node:util";
import { ConfigError } from "./errors.js";
import { shown } from "./options.js";

/** A reference to a vendor's secret; neither `inspect`, nor JSON, nor string conversion shows a value. */
export class Secret {
  readonly #kind: "env" | "file" | "value";
  readonly #text: string;

  private constructor(kind: "env" | "file" | "value", text: string) {
    this.#kind = kind;
    this.#text = text;
  }

  /** From an environment variable, read when the ledger is opened. */
  static env(name: string): Secret {
    return new Secret("env", name);
  }

  /** From a file that only its owner may read; read by the native module. */
  static file(path: string): Secret {
    return new Secret("file", path);
  }

  /** Given here. It is then a JavaScript string, which nothing can wipe. */
  static value(secret: string): Secret {
    return new Secret("value", secret);
  }

  /** @internal For the native module. */
  static setting(secret: Secret | string, name: string): Record<string, string> {
    const given = typeof secret === "string" ? Secret.value(secret) : secret;
    if (!(given instanceof Secret))
      throw new ConfigError(
        `secrets: ${name} is ${shown(given)}; give the secret, Secret.file(path) or Secret.env(name)`,
      );
    return { [given.#kind]: given.#text };
  }

  toString(): string {
    return this.#kind === "value" ? "Secret.value(...)" : `Secret.${this.#kind}(${JSON.stringify(this.#text)})`;
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

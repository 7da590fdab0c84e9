/** Where a vendor's real secret comes from. Prefer a file: then it never becomes a JavaScript string. */

import { inspect } from "node:util";
import { ConfigError } from "./errors.js";
import { keep, kept } from "./inside.js";
import { flagOf, refuseUnknown, shown } from "./options.js";

/** Where a secret is, or what it is. */
interface Setting {
  readonly kind: "env" | "file" | "value";
  /** The variable's name, the path, or the secret. */
  readonly text: string;
  /** Whether the variable is taken out of the environment when the secret is first used. */
  readonly remove?: boolean;
  /** What was in the variable that was taken out. */
  readonly taken?: string;
}

/** A reference to a vendor's secret; neither `inspect`, nor JSON, nor string conversion shows a value. */
export class Secret {
  private constructor(setting: Setting) {
    keep(this, setting);
  }

  /**
   * From an environment variable, read when the ledger is opened. It stays in `process.env`, for all code of the process
   * and for its children, unless `remove` is true: then the `Keybrake` that is made with it takes it out, and nobody else
   * can use the variable from there on.
   */
  static env(name: string, options: { remove?: boolean } = {}): Secret {
    refuseUnknown(options, ["remove"], "Secret.env");
    return new Secret({ kind: "env", text: name, remove: flagOf(options.remove, "Secret.env: remove") });
  }

  /** From a file that only its owner may read; read by the native module. */
  static file(path: string): Secret {
    return new Secret({ kind: "file", text: path });
  }

  /** Given here. It is then a JavaScript string, which nothing can wipe. */
  static value(secret: string): Secret {
    return new Secret({ kind: "value", text: secret });
  }

  /** @internal For the native module. Not by `instanceof`: it may come from the other build of this package. */
  static setting(secret: Secret | string, name: string): Record<string, string> {
    const found = typeof secret === "string" ? { kind: "value", text: secret } : kept(secret);
    if (!isSetting(found))
      throw new ConfigError(
        `secrets: ${name} is ${shown(secret)}; give the secret, Secret.file(path) or Secret.env(name)`,
      );
    if (typeof found.text !== "string" || found.text === "")
      throw new ConfigError(`secrets: ${name} has no text; is the variable that it comes from set?`);
    return found.remove ? { value: inVariable(found) } : { [found.kind]: found.text };
  }

  /** @internal Takes the variable out of the environment, if that is wanted; the secret keeps what was in it. */
  static taken(secret: Secret | string): void {
    const found = kept(secret);
    if (!isSetting(found) || !found.remove) return;
    keep(secret as Secret, { ...found, taken: inVariable(found) });
    delete process.env[found.text];
  }

  toString(): string {
    const { kind, text } = kept(this) as Setting;
    return kind === "value" ? "Secret.value(...)" : `Secret.${kind}(${JSON.stringify(text)})`;
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

function isSetting(thing: unknown): thing is Setting {
  return typeof thing === "object" && thing !== null && "kind" in thing && "text" in thing;
}

/** What is in the variable, or was before it was taken out. */
function inVariable(setting: Setting): string {
  const value = setting.taken ?? process.env[setting.text];
  if (!value) throw new ConfigError(`environment variable ${setting.text} is not set; set it, or use a secret file`);
  return value;
}

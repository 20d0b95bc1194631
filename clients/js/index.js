// The profile API of a popi gateway, wherever there is `fetch`. Its methods are the operations of the OpenAPI document
// (operations.js); here is how each of them is sent, tried again, and read.

import { operations } from "./operations.js";

/** Statuses that a later try may not meet; of the last three the try before may have been served all the same. */
const PASSING = new Set([429, 502, 503, 504]);
/** Beside reading, erasing and setting: what changes nothing where it is sent twice, by the ids or content of signals. */
const REPEATABLE = new Set(["addSignals", "importUsers", "feedback"]);
const LONGEST_WAIT_S = 60;

/** Why there is no answer, or a refusal: `status` of HTTP (null: no answer came), the gateway's `code`. */
export class GatewayError extends Error {
  constructor(message, { status = null, code = null, cause } = {}) {
    super(message, { cause });
    this.name = "GatewayError";
    this.status = status;
    this.code = code;
  }
}

/** One gateway and one key. */
export class Client {
  #url;
  #key;
  #settings;

  constructor(url, key, { tenant, timeout = 60, retries = 5 } = {}) {
    if (!/^https?:\/\//.test(url)) throw new TypeError(`the gateway's URL is http://host:port; got ${url}`);
    // fetch would quote a key that it can't send.
    if (!/^[\x21-\x7e]+$/.test(key ?? "")) throw new TypeError("the key is missing, or has characters that none has");
    this.#url = url.replace(/\/+$/, "");
    this.#key = key;
    this.#settings = { tenant, timeout, retries };
  }

  async #call(name, { method, path, body, query, headers: sent }, args) {
    const values = [...args];
    const target = path.replace(/{(\w+)}/g, () => segment(values.shift()));
    const content = body ? JSON.stringify(values.shift()) : undefined;
    if (body && content === undefined) throw new TypeError(`${name} needs a body`);
    const { signal, ...options } = values.shift() ?? {};
    const known = [...query, ...sent];
    const unknown = Object.keys(options).find((one) => !known.includes(one));
    if (unknown !== undefined) throw new TypeError(`${name} has no option ${unknown}; it has: ${known.join(", ")}`);
    const search = new URLSearchParams(query.filter((one) => options[one] != null).map((one) => [one, options[one]]));
    const headers = { authorization: `Bearer ${this.#key}` };
    // listKeys asks for a tenant in its query.
    const tenant = (query.includes("tenant") ? undefined : options.tenant) ?? this.#settings.tenant;
    if (tenant !== undefined && sent.includes("tenant")) headers["x-popi-tenant"] = tenant;
    if (options.version !== undefined) headers["if-match"] = `"${options.version}"`;
    if (content !== undefined) headers["content-type"] = "application/json";
    const url = this.#url + target + (search.size ? `?${search}` : "");
    // An edit that was served meets its own version the second time.
    const repeatable = (method !== "POST" && !sent.includes("version")) || REPEATABLE.has(name);
    return this.#exchange(`${method} ${target}`, url, { method, headers, body: content }, repeatable, signal);
  }

  async #exchange(named, url, request, repeatable, signal) {
    for (let retry = 0; ; retry++) {
      let wait = Math.min(LONGEST_WAIT_S, 2 ** retry) * (0.5 + Math.random() / 2);
      let failed;
      try {
        const { reply, text } = await this.#send(url, request, signal);
        if (reply.ok) return read(named, reply, text);
        failed = refusal(named, reply, text);
        wait = Math.max(wait, retryAfter(reply.headers));
      } catch (error) {
        if (signal?.aborted || error instanceof GatewayError) throw error;
        failed = new GatewayError(`${named}: no answer (${error.cause?.message ?? error.message})`, { cause: error });
      }
      const { status } = failed;
      const again = status === 429 || (repeatable && (status === null || PASSING.has(status)));
      if (!again || retry >= this.#settings.retries || wait > LONGEST_WAIT_S) throw failed;
      await pause(wait, signal);
    }
  }

  async #send(url, request, signal) {
    const limit = AbortSignal.timeout(this.#settings.timeout * 1000);
    const both = signal ? AbortSignal.any([signal, limit]) : limit;
    // A redirect would carry the key to another server.
    const reply = await fetch(url, { ...request, redirect: "error", signal: both });
    return { reply, text: await reply.text() };
  }

  static {
    for (const [name, operation] of Object.entries(operations)) {
      this.prototype[name] = async function (...args) {
        return this.#call(name, operation, args);
      };
    }
  }
}

function segment(id) {
  if (!["string", "number"].includes(typeof id) || id === "") throw new TypeError(`an id is missing; got ${id}`);
  // fetch resolves these away, percent-encoded or not, and the path would be another's.
  if (id === "." || id === "..") throw new TypeError(`fetch can't send the id ${id}`);
  return encodeURIComponent(id);
}

function read(named, reply, text) {
  try {
    return JSON.parse(text);
  } catch {
    const words = `${named}: answered with something other than JSON; is this the URL of a popi gateway?`;
    throw new GatewayError(words, { status: reply.status });
  }
}

/** What stands between us and the gateway may speak otherwise than the gateway. */
function refusal(named, { status }, text) {
  let code = null;
  let message = text.slice(0, 300) || "(no message)";
  try {
    ({ code, message } = JSON.parse(text).error);
  } catch {}
  return new GatewayError(`${named}: ${status}: ${message}`, { status, code });
}

/** Seconds that the gateway asks to wait. */
function retryAfter(headers) {
  const asked = headers.get("retry-after") ?? "";
  const seconds = /^\d+$/.test(asked) ? Number(asked) : (Date.parse(asked) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? seconds : 0;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

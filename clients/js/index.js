// A client for a popi gateway's profile API, for any runtime with `fetch`. Its methods are the operations of the OpenAPI
// document (operations.js); this file sends requests, retries them and parses the replies.

import { operations } from "./operations.js";

/** Transient statuses, worth a retry. With the last three, the request may have succeeded nevertheless. */
const PASSING = new Set([429, 502, 503, 504]);
/** POSTs that are safe to repeat, since signals are identified by id or content. */
const REPEATABLE = new Set(["addSignals", "importUsers", "feedback"]);
const LONGEST_WAIT_S = 60;

/** A failed call: the HTTP `status` (null if there was no answer) and the gateway's error `code`. */
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
    if (!/^https?:\/\//.test(url)) throw new TypeError(`the gateway's URL must look like http://host:port; got ${url}`);
    // fetch would quote an invalid key in its error.
    if (!/^[\x21-\x7e]+$/.test(key ?? "")) throw new TypeError("the key is missing or has invalid characters");
    this.#url = url.replace(/\/+$/, "");
    this.#key = key;
    this.#settings = { tenant, timeout, retries };
  }

  async #call(name, { method, path, body, query, headers: allowed }, args) {
    const values = [...args];
    const target = path.replace(/{(\w+)}/g, () => segment(values.shift()));
    const content = body ? JSON.stringify(values.shift()) : undefined;
    if (body && content === undefined) throw new TypeError(`${name} needs a body`);
    const { signal, ...options } = values.shift() ?? {};
    const known = [...query, ...allowed];
    const unknown = Object.keys(options).find((one) => !known.includes(one));
    if (unknown !== undefined) throw new TypeError(`${name} has no option ${unknown}; it has: ${known.join(", ")}`);
    const search = new URLSearchParams(query.filter((one) => options[one] != null).map((one) => [one, options[one]]));
    const headers = { authorization: `Bearer ${this.#key}` };
    // listKeys has the tenant in its query.
    const tenant = (query.includes("tenant") ? undefined : options.tenant) ?? this.#settings.tenant;
    if (tenant !== undefined && allowed.includes("tenant")) headers["x-popi-tenant"] = tenant;
    if (options.version !== undefined) headers["if-match"] = `"${options.version}"`;
    if (content !== undefined) headers["content-type"] = "application/json";
    const url = this.#url + target + (search.size ? `?${search}` : "");
    // If an edit succeeded, repeating it would conflict with its own version.
    const repeatable = (method !== "POST" && !allowed.includes("version")) || REPEATABLE.has(name);
    return this.#exchange(`${method} ${target}`, url, { method, headers, body: content }, repeatable, signal);
  }

  async #exchange(label, url, request, repeatable, signal) {
    for (let retry = 0; ; retry++) {
      let wait = Math.min(LONGEST_WAIT_S, 2 ** retry) * (0.5 + Math.random() / 2);
      let failed;
      try {
        const { reply, text } = await this.#send(url, request, signal);
        if (reply.ok) return read(label, reply, text);
        failed = refusal(label, reply, text);
        wait = Math.max(wait, retryAfter(reply.headers));
      } catch (error) {
        if (signal?.aborted || error instanceof GatewayError) throw error;
        failed = new GatewayError(`${label}: no answer (${error.cause?.message ?? error.message})`, { cause: error });
      }
      const { status } = failed;
      const again = status === 429 || (repeatable && (status === null || PASSING.has(status)));
      if (!again || retry >= this.#settings.retries || wait > LONGEST_WAIT_S) throw failed;
      await pause(wait, signal);
    }
  }

  async #send(url, request, signal) {
    const limit = AbortSignal.timeout(this.#settings.timeout * 1000);
    const either = signal ? AbortSignal.any([signal, limit]) : limit;
    // A redirect would send the key to another server.
    const reply = await fetch(url, { ...request, redirect: "error", signal: either });
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
  // fetch resolves these as path segments, percent-encoded or not, and the path would be another user's.
  if (id === "." || id === "..") throw new TypeError(`fetch can't send the id ${id}`);
  return encodeURIComponent(id);
}

function read(label, reply, text) {
  try {
    return JSON.parse(text);
  } catch {
    const message = `${label}: answered with something other than JSON; is this the URL of a popi gateway?`;
    throw new GatewayError(message, { status: reply.status });
  }
}

/** The error in a reply. Proxies between us and the gateway may reply in another form. */
function refusal(label, { status }, text) {
  let code = null;
  let message = text.slice(0, 300) || "(no message)";
  try {
    ({ code, message } = JSON.parse(text).error);
  } catch {}
  return new GatewayError(`${label}: ${status}: ${message}`, { status, code });
}

/** The seconds to wait that the gateway requests. */
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

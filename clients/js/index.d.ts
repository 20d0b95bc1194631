import type { Operations } from "./operations.js";
import type { components, operations } from "./types.js";

/** All request and response types by their names in the OpenAPI document: `Schemas["SummaryAnswer"]`. */
export type Schemas = components["schemas"];

type Name = keyof operations;
type Json<Response> = Response extends { content: { "application/json": infer Value } } ? Value : never;
type Responses<N extends Name> = operations[N]["responses"];
type Query<N extends Name> = NonNullable<operations[N]["parameters"]["query"]>;
type Header<N extends Name> = NonNullable<operations[N]["parameters"]["header"]>;

/** An operation's request body. */
export type Body<N extends Name> = operations[N] extends { requestBody: infer Sent } ? Json<Sent> : never;
/** An operation's response. */
export type Answer<N extends Name> = Json<Responses<N>[keyof Responses<N>]>;
/** An operation's options. */
export type Options<N extends Name> = ([Query<N>] extends [never] ? {} : Omit<Query<N>, "format">) &
  ([Header<N>] extends [never] ? {} : Header<N> extends { "x-popi-tenant"?: unknown } ? OfTenant : {}) &
  ([Header<N>] extends [never] ? {} : "If-Match" extends keyof Header<N> ? Seen : {}) & {
    /** Aborts the call. */
    signal?: AbortSignal;
  };
interface OfTenant {
  /** For an admin key: a tenant other than its own. */
  tenant?: string;
}
interface Seen {
  /** The version that you saw; omit it if there was none. If a newer one is current, the call fails with 412. */
  version?: number;
}

export interface Settings {
  /** The users' tenant, for an admin key. */
  tenant?: string;
  /** Seconds per try. Default: 60. */
  timeout?: number;
  /** Maximum retries, after 429 and when a retry is safe. Default: 5. */
  retries?: number;
}

/** The profile API of a gateway. Failures are `GatewayError`. */
export interface Client extends Operations {}
export declare class Client {
  /**
   * @param url the gateway's URL, such as `http://localhost:8600`, without `/v1`.
   * @param key an app key can access all users of its tenant, a user key only its own profile.
   */
  constructor(url: string, key: string, settings?: Settings);
}

/** A failed call. */
export declare class GatewayError extends Error {
  /** The HTTP status; null if there was no answer. */
  readonly status: number | null;
  /** The gateway's error code: `no_user`, `version_conflict`, `not_allowed`, … */
  readonly code: string | null;
}

import type { Operations } from "./operations.js";
import type { components, operations } from "./types.js";

/** Everything that is sent and received, by its name in the OpenAPI document: `Schemas["SummaryAnswer"]`. */
export type Schemas = components["schemas"];

type Name = keyof operations;
type Json<Response> = Response extends { content: { "application/json": infer Value } } ? Value : never;
type Responses<N extends Name> = operations[N]["responses"];
type Query<N extends Name> = NonNullable<operations[N]["parameters"]["query"]>;
type Header<N extends Name> = NonNullable<operations[N]["parameters"]["header"]>;

/** What an operation takes. */
export type Body<N extends Name> = operations[N] extends { requestBody: infer Sent } ? Json<Sent> : never;
/** What it gives. */
export type Answer<N extends Name> = Json<Responses<N>[keyof Responses<N>]>;
/** What can be said beside that. */
export type Options<N extends Name> = ([Query<N>] extends [never] ? {} : Omit<Query<N>, "format">) &
  ([Header<N>] extends [never] ? {} : Header<N> extends { "x-popi-tenant"?: unknown } ? OfTenant : {}) &
  ([Header<N>] extends [never] ? {} : "If-Match" extends keyof Header<N> ? Seen : {}) & {
    /** Ends the call. */
    signal?: AbortSignal;
  };
interface OfTenant {
  /** Of an admin key: another tenant than its own. */
  tenant?: string;
}
interface Seen {
  /** The version that was seen; left out: there was none. A newer one is refused with 412. */
  version?: number;
}

export interface Settings {
  /** Whose users, where the key is an admin's. */
  tenant?: string;
  /** Seconds for one try. Default: 60. */
  timeout?: number;
  /** How often a request is sent again, after 429 and where that can do no harm. Default: 5. */
  retries?: number;
}

/** The profile API of a gateway. Failures are `GatewayError`. */
export interface Client extends Operations {}
export declare class Client {
  /**
   * @param url the gateway, as `http://localhost:8600`: no `/v1`.
   * @param key an app key reaches the users of its tenant, a user key its own profile alone.
   */
  constructor(url: string, key: string, settings?: Settings);
}

/** Why there is no answer, or a refusal. */
export declare class GatewayError extends Error {
  /** Of HTTP; null: no answer came. */
  readonly status: number | null;
  /** The gateway's word for it: `no_user`, `version_conflict`, `not_allowed`, … */
  readonly code: string | null;
}

// Compiled, never run: what compiles with the client, and what must not.
import { Client, GatewayError, type Schemas } from "popi-client";

const client = new Client("http://localhost:8600", "key", { tenant: "shop", retries: 2 });

const summary: Schemas["SummaryAnswer"] = await client.getSummary("u17");
const texts: string[] = summary.clauses.map((clause) => clause.text);
const locked = { text: texts[0] ?? "", locked: true };
await client.putSummary("u17", { clauses: [locked] }, { version: summary.version, tenant: "shop" });
await client.addSignals("u17", { signals: [{ type: "statement", text: "i like short answers." }] });
const made: string = (await client.makeKey({ scope: "user", user_id: "u17" })).key;
const { items, next }: { items: string[]; next: string | null } = await client.listUsers({ prefix: "u", limit: 10 });
const exported: Schemas["ExportAnswer"] = await client.export("u17", { signal: AbortSignal.timeout(1000) });
const failed = new GatewayError("");
const status: number | null = failed.status;

// @ts-expect-error there is no such option
await client.putSummary("u17", { text: "x" }, { versoin: 1 });
// @ts-expect-error reads take no version
await client.getSummary("u17", { version: 1 });
// @ts-expect-error there is no such scope
await client.makeKey({ scope: "root" });
// @ts-expect-error a signal without a type
await client.addSignals("u17", { signals: [{ text: "x" }] });
// @ts-expect-error no user
await client.getUser();

export { exported, items, made, next, status };

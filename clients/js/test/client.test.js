// Against a gateway: POPI_URL, with its keys POPI_APP_KEY, POPI_USER_KEY (of ada) and POPI_ADMIN_KEY.
// tests/end_to_end/test_js_client.py starts one.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { Client, GatewayError } from "popi-client";
import { operations } from "../operations.js";

const { POPI_URL: url, POPI_APP_KEY: appKey, POPI_USER_KEY: userKey, POPI_ADMIN_KEY: adminKey } = process.env;
const app = new Client(url, appKey);
const pair = { type: "pair", id: "p1", prompt: "what is amber?", chosen: "resin", rejected: "well, amber is..." };

const refused = (status, code) => (error) =>
  error instanceof GatewayError && error.status === status && error.code === code;

test("a user from the first signal to the last byte", async () => {
  const id = "a/b ☃ ?#%2F";
  await assert.rejects(app.getSummary(id), refused(404, "no_user"));
  assert.deepEqual((await app.addSignals(id, { signals: [pair] })).ids, ["p1"]);
  assert.equal((await app.addSignals(id, { signals: [pair] })).duplicates, 1);
  const first = await app.putSummary(id, { text: "Likes amber. Likes birch." });
  assert.deepEqual([first.version, first.clauses.map((one) => one.text)], [1, ["Likes amber.", "Likes birch."]]);
  await assert.rejects(app.putSummary(id, { text: "Late." }), refused(428, "if_match_required"));
  const second = await app.putSummary(id, { text: "Likes cedar." }, { version: 1 });
  assert.equal(second.version, 2);
  await assert.rejects(app.putSummary(id, { text: "Late." }, { version: 1 }), refused(412, "version_conflict"));
  assert.equal((await app.rollback(id, { version: 1 }, { version: 2 })).text, first.text);
  assert.deepEqual((await app.getVersions(id)).versions.map((one) => one.version), [3, 2, 1]);
  assert.equal((await app.deleteVersion(id, 2)).versions, 1);
  assert.equal((await app.deleteClause(id, first.clauses[1].id, { forbid: true })).clauses, 1);
  assert.deepEqual(await app.setControls(id, { learn: false }), { use: true, learn: false });
  await app.setControls(id, { learn: true });
  assert.equal((await app.pause(id, { paused: true })).paused, true);
  await app.pause(id, { paused: false });
  const user = await app.getUser(id);
  assert.deepEqual([user.user_id, user.signals, user.paused], [id, 1, false]);
  assert.equal((await app.export(id)).signals[0].chosen, "resin");
  await app.importUsers({ users: [{ user_id: "js-2", signals: [{ type: "statement", text: "hi" }] }] });
  assert.deepEqual((await app.listUsers({ prefix: "js-", limit: 1 })).items, ["js-2"]);
  assert.equal((await app.mergeUsers(id, { source: "js-2" })).user.signals, 2);
  assert.ok((await app.makeLink(id)).url.startsWith("http"));
  assert.equal((await app.eraseUser(id)).removed.signals, 2);
});

test("a key reaches what it may", async () => {
  await app.putSummary("ada", { text: "Secretive." });
  assert.equal((await new Client(url, userKey).getSummary("ada")).text, "Secretive.");
  await assert.rejects(new Client(url, userKey).getSummary("ben"), refused(403, "not_allowed"));
  await assert.rejects(new Client(url, "popi_0000_nonsense").getSummary("ada"), { status: 401 });
  const admin = new Client(url, adminKey);
  const made = await admin.makeKey({ scope: "app", tenant: "js" });
  assert.ok((await admin.listTenants()).items.includes("js"));
  assert.deepEqual((await admin.listKeys({ tenant: "js" })).items.map((one) => one.key_id), [made.key_id]);
  await admin.putSummary("ada", { text: "Another's ada." }, { tenant: "js" });
  assert.equal((await new Client(url, adminKey, { tenant: "js" }).getSummary("ada")).text, "Another's ada.");
  assert.notEqual((await admin.revokeKey(made.key_id)).revoked_at, null);
});

test("the gateway knows every operation", async () => {
  const admin = new Client(url, adminKey, { tenant: "acme" });
  for (const [name, { path, body }] of Object.entries(operations)) {
    const args = [...path.matchAll(/{\w+}/g)].map(() => "1");
    const failed = await admin[name](...args, ...(body ? [{}] : [])).catch((error) => error);
    const { status, code } = failed instanceof Error ? failed : {};
    const known = status === undefined || (status === 404 && code !== "no_such_path");
    assert.ok(body ? code === "not_valid" : known, `${name}: ${failed}`);
  }
});

test("what can't be right is not sent", async () => {
  for (const id of ["", ".", "..", undefined]) await assert.rejects(app.getUser(id), TypeError);
  await assert.rejects(app.putSummary("ada"), /needs a body/);
  await assert.rejects(app.putSummary("ada", { text: "x" }, { versoin: 1 }), /no option versoin; it has: tenant, version/);
  assert.throws(() => new Client("localhost:8600", appKey), /http:/);
  assert.throws(() => new Client(url, "secret\nkey"), (error) => !error.message.includes("secret"));
});

/** A server that answers in turn: a status, or nothing. */
async function scripted(script, run) {
  const got = [];
  const server = createServer((request, reply) => {
    got.push(`${request.method} ${request.url}`);
    const status = script.shift();
    if (status === undefined) return request.socket.destroy();
    if (status === "silence") return;
    reply.writeHead(status, { "retry-after": "0", location: "/elsewhere" });
    reply.end(status === 200 ? '{"ids": []}' : '{"error": {"code": "word", "message": "sentence"}}');
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  try {
    await run(new Client(`http://127.0.0.1:${server.address().port}/`, "key", { retries: 1, timeout: 5 }));
  } finally {
    server.closeAllConnections();
    server.close();
  }
  return got;
}

test("what may be sent again is, and nothing else", async () => {
  const send = (client) => client.addSignals("a b", { signals: [] });
  for (const passing of [429, 503, undefined])
    assert.equal((await scripted([passing, 200], async (client) => assert.deepEqual(await send(client), { ids: [] }))).length, 2);
  const twice = await scripted([503, 503], (client) => assert.rejects(send(client), refused(503, "word")));
  assert.deepEqual(twice, ["POST /users/a%20b/signals", "POST /users/a%20b/signals"]);
  for (const call of [(client) => client.makeKey({ scope: "app" }), (client) => client.putSummary("a", { text: "" })])
    for (const passing of [503, undefined])
      assert.equal((await scripted([passing, 200], (client) => assert.rejects(call(client), GatewayError))).length, 1);
  const moved = await scripted([307, 307], (client) => assert.rejects(client.getUser("a"), { status: null }));
  assert.ok(moved.every((one) => one === "GET /users/a"));
});

test("a call ends when its signal says so", async () => {
  const stop = new AbortController();
  const got = await scripted(["silence"], async (client) => {
    const call = client.getUser("a", { signal: stop.signal });
    setTimeout(() => stop.abort(), 50);
    await assert.rejects(call, { name: "AbortError" });
  });
  assert.equal(got.length, 1);
});

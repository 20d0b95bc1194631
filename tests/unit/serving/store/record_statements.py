"""Record the SQL that this version sends to PostgreSQL, for tests that a later schema still takes it.

.ci/postgres python tests/unit/serving/store/record_statements.py

Run it from the root of a checkout with PYTHONPATH=src:tests before adding a step to the schema. The file is named after
the last step: statements_NNNN.jsonl, one statement per line in the order of execution, with its parameters and the
number of rows that it returned or changed (-1: unknown).
"""

import json
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from serving_client import empty_store, gateway_client
from sqlalchemy import event

from popi.profiles.fields import StoredClause
from popi.serving.store import answers, expiry, jobs, keys, outbox, sessions, summaries, usage
from popi.serving.store.database import Database
from popi.serving.store.migrate import known
from popi.serving.store.sessions import SessionRecord

SIGNALS = {"signals": [{"type": "statement", "text": f"I like tea {n}.", "id": f"s{n}"} for n in range(3)]}


def use(database: Database) -> None:
    """Everything that gateways and workers do with the store, without anything that is rolled back."""
    with gateway_client(database) as people:

        def ask(method: str, path: str, key: str = "app", **more: Any) -> Any:
            reply = people.ask(method, path, key, **more)
            assert reply.status_code < 300, reply.text
            return reply.json()

        for user in ("ada", "bob", "cem", "dan"):
            ask("POST", f"/users/{user}/signals", json=SIGNALS)
            clauses = {"clauses": [{"text": "Likes tea."}, {"text": "Lives in Ulm."}]}
            ask("PUT", f"/users/{user}/summary", json=clauses, headers={"if-match": "0"})
        ask("PUT", "/users/ada/summary", "ada", json={"text": "Likes tea. Is ill."}, headers={"if-match": "1"})
        edit = {"clauses": [{"text": "Likes tea."}], "forbidden": [{"text": "Is ill."}]}
        current = ask("PUT", "/users/ada/summary", json=edit, headers={"if-match": "2"})
        ask("POST", "/users/ada/summary/rollback", json={"version": 1}, headers={"if-match": "3"})
        for path in ("", "/summary", "/summary/versions", "/signals", "/controls"):
            ask("GET", f"/users/ada{path}")
        assert people.ask("GET", "/users/ada/export", "app").status_code == 200
        ask("DELETE", "/users/ada/signals/s1")
        ask("DELETE", f"/users/ada/summary/clauses/{current['clauses'][0]['id']}")
        ask("DELETE", "/users/ada/summary/versions/1")
        ask("PUT", "/users/bob/controls", json={"use": False, "learn": False})
        ask("PUT", "/users/bob/controls", json={"use": True, "learn": True})
        ask("POST", "/users/ada/summary/rebuild")
        ask("POST", "/users/cem/merge", json={"source": "dan"})
        made = ask("POST", "/keys", "admin", json={"scope": "user", "tenant": "acme", "user_id": "bob"})
        ask("DELETE", f"/keys/{made['key_id']}", "admin")
        for path in ("/keys", "/tenants", "/audit", "/audit?tenant=acme&user=ada"):
            ask("GET", path, "admin")
        ask("GET", "/users?limit=2")

        def work(connection: Any) -> None:
            outbox.register(connection, "crm", ("summary.changed", "user.erased"), 60.0, 1e9)
            stored = [answers.StoredAnswer("a1", "What?", "This.", 1, "u1")]
            assert answers.put(connection, "acme", "cem", stored, 4e9, 4e9, 3600.0) == 1

        def renew(connection: Any) -> None:
            job = jobs.claim(connection, 4e9, 60.0)
            assert job is not None and jobs.extend_lease(connection, job, 4e9, 60.0)
            quotas = [usage.Quota("user_quota", (job.tenant, job.user_id, ""), usage.HOUR)]
            usage.spend(connection, usage.charge(connection, quotas, 1e9), 2, 100, 20)
            clauses = [StoredClause(id="c", text="Likes coffee.")]
            who = (job.tenant, job.user_id)
            summaries.put(connection, *who, "Likes coffee.", clauses, "model", 1e9, expected=None, model="m")
            assert jobs.finish(connection, job)

        def deliver(connection: Any) -> None:
            for pending in outbox.claim(connection, "crm", 3e9, 60.0, 10):
                outbox.finish(connection, pending)

        def sign_in(connection: Any) -> None:
            record = SessionRecord("h" * 64, "acme", "cem", None, None, 4e9)
            assert sessions.open_by_link(connection, "l" * 64, 1e9, 4e9, record, 1e9)
            assert sessions.find(connection, "h" * 64, 1e9)

        for step in (work, renew, deliver, sign_in):
            database.write(step)
        database.read(jobs.any_due, 4e9)
        database.read(jobs.counts, 1e9)
        database.read(answers.find, "acme", "cem", "a1", 1e9)
        database.read(summaries.current_texts, [("acme", "ada"), ("acme", "cem"), ("acme", "nobody")])
        database.read(keys.list_keys, "acme")
        database.write(expiry.expire, 2e9)
        ask("DELETE", "/users/ada")


def recorded(url: str) -> list[dict[str, Any]]:
    """The statements of `use`."""
    database = Database.open(url)
    lines: list[dict[str, Any]] = []
    lock = threading.Lock()

    def note(_c: Any, cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if "SAVEPOINT" in statement:  # not to be run alone
            return
        with lock:
            for one in parameters if many else [parameters]:
                lines.append({"sql": statement, "values": one, "rows": -1 if many else cursor.rowcount})

    event.listen(database._engine, "after_cursor_execute", note)
    use(database)
    database.close()
    return lines


def main() -> None:
    step = known()[-1].number
    with tempfile.TemporaryDirectory() as folder, empty_store("postgresql", Path(folder)) as url:
        lines = recorded(url)
    seen: set[str] = set()
    out = Path(__file__).with_name(f"statements_{step:04}.jsonl")
    with out.open("w", encoding="utf-8") as file:
        for line in lines:
            repeated = line["sql"] in seen and re.match(r"\s*SELECT", line["sql"])
            seen.add(line["sql"])
            if not repeated:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{out}: {len(seen)} different statements")


if __name__ == "__main__":
    main()

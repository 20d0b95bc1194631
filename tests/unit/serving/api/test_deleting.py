"""Deleting over the profile API: what is named goes, who saw it can't write it back, and the proxy hears of it."""

from typing import Any

from serving_client import People, whole_store

from popi.serving.store import summaries

SECRET = "marmalade addiction"


def fill(people: People) -> dict[str, Any]:
    sent = {"signals": [{"type": "statement", "text": f"i fight my {SECRET}", "id": "a/b c"}]}
    assert people.ask("POST", "/users/ada/signals", json=sent).status_code == 200
    clauses = [{"text": f"Fights a {SECRET}.", "signals": ["a/b c"]}, {"text": "Likes tea."}]
    reply = people.ask("PUT", "/users/ada/summary", json={"clauses": clauses})
    assert reply.status_code == 200
    return dict(reply.json())


def test_each_is_deleted_and_nothing_is_left(people: People) -> None:
    first = fill(people)
    name = first["clauses"][0]["id"]
    done = people.ask("DELETE", f"/users/ada/summary/clauses/{name}?signals=true")
    assert done.status_code == 200, done.text
    kind = people.gateway.store.database.kind
    on_disk = "overwritten" if kind == "sqlite" else "left_to_postgresql"
    wanted = {
        "signals": 1,
        "clauses": 1,
        "versions": 0,
        "rewritten": 1,
        "answers": 0,
        "version": 2,
        "data_on_disk": on_disk,
    }
    assert done.json() == wanted
    assert SECRET not in whole_store(people.gateway.store.database)
    back = people.ask("PUT", "/users/ada/summary", json={"clauses": first["clauses"]}, headers={"if-match": '"1"'})
    assert back.status_code == 412  # who saw it can't write it back unseen
    assert SECRET not in people.ask("GET", "/users/ada/export").text
    found = people.gateway.store.database.read(summaries.current_text, "acme", "ada")
    assert found is not None and (found.text, found.version) == ("Likes tea.", 2)


def test_signals_are_listed_page_by_page_and_found_by_their_words(people: People) -> None:
    assert people.ask("GET", "/users/ada/signals").status_code == 404
    chat = [{"role": "system", "content": "Be KIND."}, {"role": "user", "content": "Wo ist die Straße?"}]
    sent: list[dict[str, Any]] = [{"type": "statement", "text": f"tea {n}", "id": f"x{n}"} for n in range(5)]
    sent.append({"type": "pair", "prompt": chat, "chosen": "Dort.", "rejected": "Nirgends.", "id": "p"})
    assert people.ask("POST", "/users/ada/signals", json={"signals": sent}).status_code == 200

    def ids(query: str) -> tuple[list[str], Any]:
        reply = people.ask("GET", f"/users/ada/signals?{query}")
        assert reply.status_code == 200, reply.text
        return [one["id"] for one in reply.json()["items"]], reply.json()["next"]

    first, following = ids("limit=4")
    assert first == ["p", "x4", "x3", "x2"] and ids(f"limit=4&after={following}") == (["x1", "x0"], None)
    assert ids("contains=STRASSE") == ids("contains=be%20kind") == ids("contains=nirgends") == (["p"], None)
    assert ids("contains=TEA&limit=2")[0] == ["x4", "x3"]
    # Neither ids nor the names of types and roles are words of theirs.
    assert ids("contains=statement") == ids("contains=x1") == ids("contains=system") == ([], None)
    assert people.ask("GET", "/users/ada/signals", people.ada).status_code == 200
    for wrong in ("after=-1", "after=x", "limit=0", "contains=%00", "what=1"):
        assert people.ask("GET", f"/users/ada/signals?{wrong}").status_code in (400, 422), wrong


def test_a_signal_by_its_id_whatever_that_is(people: People) -> None:
    fill(people)
    assert people.ask("DELETE", "/users/ada/signals/a%2Fb%20c").json()["signals"] == 1
    again = people.ask("DELETE", "/users/ada/signals/a%2Fb%20c")
    assert again.status_code == 404 and again.json()["error"]["code"] == "no_signal"
    assert people.ask("GET", "/users/ada").json()["signals"] == 0


def test_a_version(people: People) -> None:
    fill(people)
    people.ask("PUT", "/users/ada/summary", json={"text": "Likes tea."}, headers={"if-match": '"1"'})
    assert people.ask("DELETE", "/users/ada/summary/versions/1").json()["versions"] == 1
    assert people.ask("DELETE", "/users/ada/summary/versions/1").json()["error"]["code"] == "no_version"
    kept = people.ask("GET", "/users/ada/summary/versions").json()["versions"]
    assert [one["version"] for one in kept] == [2]
    assert people.ask("DELETE", "/users/ada/summary/versions/0").status_code == 400


def test_what_is_forbidden_and_whose_words_are_whose_to_see(people: People) -> None:
    fill(people)
    body = {"forbidden": [{"text": f"Fights a {SECRET}."}]}
    put = people.ask("PUT", "/users/ada/summary", json=body, headers={"if-match": '"1"'}).json()
    [one] = put["forbidden"]
    assert one["text"] == f"Fights a {SECRET}." and one["send_to_model"] is False and put["text"] == "Likes tea."
    assert people.ask("DELETE", f"/users/ada/summary/forbidden/{one['id']}/words").json()["rewritten"] == 1
    now = people.ask("GET", "/users/ada/summary").json()
    assert now["forbidden"] == [{"id": one["id"], "text": None, "send_to_model": False}]
    # What was read can be written back.
    seen = {"if-match": f'"{now["version"]}"'}
    again = people.ask("PUT", "/users/ada/summary", json={"forbidden": now["forbidden"]}, headers=seen).json()
    assert again["forbidden"] == now["forbidden"]
    people.ask("DELETE", "/users/ada/signals/a%2Fb%20c")
    assert SECRET not in whole_store(people.gateway.store.database)
    assert people.ask("DELETE", "/users/ada/summary/forbidden/nope/words").status_code == 404


def test_a_statement_is_deleted_and_forbidden_at_once(people: People) -> None:
    name = fill(people)["clauses"][0]["id"]
    people.ask("DELETE", f"/users/ada/summary/clauses/{name}?forbid=true&signals=true")
    [one] = people.ask("GET", "/users/ada/summary").json()["forbidden"]
    assert one["text"] is None and SECRET not in whole_store(people.gateway.store.database)


def test_who_may(people: People) -> None:
    name = fill(people)["clauses"][0]["id"]
    for path in (
        f"summary/clauses/{name}",
        "summary/versions/1",
        "signals/a%2Fb%20c",
        f"summary/forbidden/{name}/words",
    ):
        assert people.ask("DELETE", f"/users/ada/{path}", None).status_code == 401
        assert people.ask("DELETE", f"/users/ada/{path}", "other_app").status_code == 404
        assert people.ask("DELETE", f"/users/bo/{path}", "ada").status_code == 403
        assert people.ask("DELETE", f"/users/nobody/{path}").json()["error"]["code"] == "no_user"
    assert people.ask("DELETE", f"/users/ada/summary/clauses/{name}", "ada").status_code == 200

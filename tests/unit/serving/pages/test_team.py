"""What the team sees and does at /admin beside users' profiles."""

import re
import time
from html import unescape
from typing import Any

import pytest
from serving_client import ADMIN, People
from sqlalchemy import update

from popi.serving.store import jobs, usage
from popi.serving.store.jobs import Debounce
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.usage import DAY, Quota


@pytest.fixture
def team(people: People) -> People:
    """Signed in by an admin key."""
    assert people.client.post("/admin/sign-in", data={"key": ADMIN}, follow_redirects=False).status_code == 303
    return people


def page(team: People, path: str) -> str:
    reply = team.client.get(path)
    assert reply.status_code == 200, reply.text
    return str(reply.text)


def rows(text: str) -> list[list[str]]:
    """The cells of a table's body."""
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in body.split("</tr>")[:-1]]
    return [[" ".join(unescape(re.sub("<[^>]*>", " ", cell)).split()) for cell in row] for row in cells]


def retry(team: People, **form: str) -> Any:
    csrf = re.findall(r'name="csrf" value="(\w+)"', page(team, "/admin"))[0]
    return team.client.post("/admin/renewals/retry", data={"csrf": csrf, **form}, follow_redirects=False)


def stale(team: People, user_id: str, tenant: str = "acme", **columns: Any) -> None:
    """A user whose renewal waits, in the state that `columns` say."""
    store = team.gateway.store.database
    reply = team.ask(
        "PUT", f"/users/{user_id}/controls", "admin", json={"use": True}, headers={"x-popi-tenant": tenant}
    )
    assert reply.status_code == 200, reply.text

    def write(connection: Any) -> None:
        jobs.request(connection, tenant, user_id, time.time(), Debounce())
        mine = (jobs_table.c.tenant == tenant, jobs_table.c.user_id == user_id)
        if columns:
            connection.execute(update(jobs_table).where(*mine).values(**columns))

    store.write(write)


def test_users_are_found_by_how_their_ids_begin(team: People) -> None:
    for user in ("ada", "adam", "ben", "bén"):
        team.ask("PUT", f"/users/{user}/controls", json={"use": True})
    assert re.findall(r">(\w+)</a></li>", page(team, "/admin?tenant=acme&user=ad"))[-2:] == ["ada", "adam"]
    listed = page(team, "/admin?tenant=acme&user=ada")  # ada is the beginning of adam
    assert ">ada<" in listed and ">adam<" in listed
    alone = team.client.get("/admin?tenant=acme&user=adam", follow_redirects=False)
    assert alone.headers["location"] == "/admin/users/acme/adam"
    decomposed = team.client.get("/admin", params={"tenant": "acme", "user": "be\u0301n"}, follow_redirects=False)
    assert decomposed.status_code == 303
    assert "No user id of this tenant begins so." in page(team, "/admin?tenant=acme&user=x%00y")


def test_more_users_than_a_page_holds_keep_the_search(team: People) -> None:
    for number in range(52):
        team.ask("PUT", f"/users/z{number:02}/controls", json={"use": True})
    first = page(team, "/admin?tenant=acme&user=z")
    more = unescape(re.findall(r'href="(/admin\?tenant=acme&amp;user=z&amp;after=z49)"', first)[0])
    assert re.findall(r">(z\d\d)</a>", page(team, more)) == ["z50", "z51"]


def test_counts_tokens_and_cost_by_tenant(team: People) -> None:
    stale(team, "ada")
    stale(team, "ben", failed_at=1.0, attempts=10, error="AnswerError")
    stale(team, "eve", tenant="other")
    database = team.gateway.store.database

    def spent(connection: Any, days_ago: int, tokens: int) -> None:
        quota = Quota("tenant_quota", ("acme", "", ""), DAY)
        windows = usage.charge(connection, [quota], time.time() - days_ago * DAY)
        usage.spend(connection, windows, 2, tokens, tokens // 10)

    database.write(spent, 0, 1_000_000)
    database.write(spent, 20, 2_000_000)
    database.write(lambda c: usage.charge(c, [Quota("user_quota", ("acme", "ada", ""), DAY)], time.time()))
    settings = team.gateway.pages._team._settings
    team.gateway.pages._team._settings = settings.model_copy(update={"input_price": 2.0, "output_price": 10.0})
    month = {row[0]: row[1:] for row in rows(page(team, "/admin/tenants"))}
    assert month["acme"] == ["2", "1", "1", "2", "3,000,000", "300,000", "9.00"]
    assert month["other"] == ["1", "1", "0", "0", "0", "0", "0.00"]
    assert month["All tenants"] == ["3", "2", "1", "2", "3,000,000", "300,000", "9.00"]
    assert rows(page(team, "/admin/tenants?days=1"))[0] == ["acme", "2", "1", "1", "1", "1,000,000", "100,000", "3.00"]
    team.gateway.pages._team._settings = settings
    assert "Cost" not in page(team, "/admin/tenants?days=x")  # no price is set


def test_renewals_that_failed_or_wait_say_why(team: People) -> None:
    stale(team, "ada", failed_at=1.0, attempts=10, error="the provider answered 401")
    stale(team, "ben", attempts=2, error="the provider did not answer")
    stale(team, "eve")
    stale(team, "joe", held_by="user_quota", due_at=time.time() + 99)
    stale(team, "zoe", lease="x", lease_until=time.time() + 99)
    failed = rows(page(team, "/admin/renewals?tenant=acme"))
    assert [row[:3] for row in failed] == [["ada", "the attempt failed: the provider answered 401", "10"]]
    assert failed[0][4].startswith("Try again")
    waiting = {row[0]: (row[1], row[4] != "") for row in rows(page(team, "/admin/renewals?tenant=acme&state=waiting"))}
    assert waiting == {
        "ben": ("the attempt failed: the provider did not answer", True),
        "eve": ("new signals", False),
        "joe": ("the user’s quota is used up", False),
        "zoe": ("under way", False),
    }
    assert rows(page(team, "/admin/renewals?tenant=other")) == []


def test_one_renewal_or_all_of_a_tenant_are_tried_again(team: People) -> None:
    database = team.gateway.store.database
    for user, tenant in (("ada", "acme"), ("ben", "acme"), ("eve", "other")):
        stale(team, user, tenant, failed_at=1.0, attempts=10, error="AnswerError")
    stale(team, "joe", attempts=3, error="AnswerError", due_at=time.time() + 3600)
    held = time.time() + 3600
    stale(team, "zoe", attempts=1, held_by="user_quota", due_at=held)

    def stands(user: str, tenant: str = "acme") -> tuple[bool, int, bool]:
        state = database.read(jobs.state, tenant, user, time.time())
        assert state is not None
        return state.failed, state.attempts, state.due_at <= time.time()

    reply = retry(team, tenant="acme", user="ada")
    assert reply.status_code == 303 and "Tried again" in page(team, reply.headers["location"])
    assert stands("ada") == (False, 0, True) and stands("ben")[0] and stands("joe")[1] == 3
    assert "There was nothing" in page(team, retry(team, tenant="acme", user="ada").headers["location"])
    assert retry(team, tenant="acme").status_code == 303
    assert stands("ben") == stands("joe") == (False, 0, True)
    assert stands("eve", "other")[0] and stands("zoe") == (False, 1, False)
    assert retry(team, tenant="nowhere").status_code == 404


def test_nobody_else_gets_there(people: People) -> None:
    for path in ("/admin/tenants", "/admin/renewals"):
        assert people.client.get(path).status_code == 401
    assert people.client.post("/admin/renewals/retry", data={"tenant": "acme"}).status_code == 401
    people.client.post("/admin/sign-in", data={"key": ADMIN})
    forged = people.client.post("/admin/renewals/retry", data={"tenant": "acme", "csrf": "x"})
    assert forged.status_code == 401  # another site's form
    assert people.client.get("/admin/renewals/retry").status_code == 404
    url = people.ask("POST", "/users/ada/link").json()["url"]
    people.client.cookies.clear()
    people.client.get("/me?" + url.split("?")[1])
    assert people.client.get("/admin/tenants").status_code == 401

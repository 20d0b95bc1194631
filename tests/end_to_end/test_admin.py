"""The team's pages at /admin in Chromium: users, tenants, renewals; on a laptop, a phone and in dark mode, with axe."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import accessible, chromium, needs_chromium, new_page, press, shot
from page_stack import ADMIN, Stack, stack
from sqlalchemy import Connection, update

from popi.serving.store import jobs, usage
from popi.serving.store.jobs import Debounce
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.usage import DAY, Quota

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def tea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("admin")) as running:
        for user in ("ada", "adam", "ben-of-the-long-and-unbroken-name-" + "x" * 60):
            running.say(user, "i cook at home for two")
            running.settled(user)
        yield running


def fail(tea: Stack, *users: str) -> None:
    """Renewals that have failed for good."""

    def write(connection: Connection) -> None:
        now = time.time()
        for user in users:
            jobs.request(connection, "shop", user, now, Debounce())
            mine = (jobs_table.c.tenant == "shop", jobs_table.c.user_id == user)
            values = {"failed_at": now, "attempts": 10, "error": "the provider answered 401", "lease": None}
            connection.execute(update(jobs_table).where(*mine).values(**values))
        quota = Quota("tenant_quota", ("shop", "", ""), DAY)
        usage.spend(connection, usage.charge(connection, [quota], now), 1, 1_234_567, 89_012)

    tea.gateway.store.database.write(write)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_team_at_work(browser: Any, tea: Stack, width: int, dark: bool) -> None:
    name = f"{'dark' if dark else 'light'}-{width}"
    fail(tea, "ada", "adam", "ben-of-the-long-and-unbroken-name-" + "x" * 60)
    page = new_page(browser, width, dark)
    page.goto(f"{tea.url}/admin")
    page.get_by_label("Admin key").fill(ADMIN)
    press(page, page, "Sign in")

    # Search by prefix.
    page.get_by_label("Tenant").select_option("shop")
    page.get_by_label("User ids that begin with").fill("ada")
    press(page, page, "Show")
    assert page.locator(".people a").all_inner_texts() == ["ada", "adam"]
    accessible(page)
    shot(page, f"admin-users-{name}")

    # Tenants, and from there to the failed renewals.
    page.get_by_role("link", name="Tenants").click()
    row = page.get_by_role("row", name="shop")
    assert re.search(r"\d,\d\d\d,\d\d\d", row.inner_text())
    accessible(page)
    shot(page, f"admin-tenants-{name}")
    row.get_by_role("cell").nth(2).get_by_role("link").click()
    assert page.get_by_text("the attempt failed: the provider answered 401").count() == 3
    accessible(page)
    shot(page, f"admin-renewals-{name}")

    # Retry one, then the others; a worker runs them.
    press(page, page.get_by_role("row", name="adam"), "Try again")
    assert page.get_by_role("status").filter(has_text="Tried again").is_visible()
    assert page.get_by_text("the attempt failed").count() == 2
    press(page, page, "Try all failed ones again")
    assert page.get_by_text("No renewal here.").is_visible()
    tea.settled("ada")
    tea.settled("adam")
    accessible(page)

    # The audit log names who did that.
    page.get_by_role("link", name="Activity").click()
    assert page.get_by_role("row", name="adam").filter(has_text="retry").first.is_visible()
    accessible(page)
    shot(page, f"admin-activity-{name}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all as JSONL").click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert {"add_signals", "retry"} <= {one["action"] for one in lines}
    assert page.troubles == []

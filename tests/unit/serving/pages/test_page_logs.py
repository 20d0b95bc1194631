"""No text, id, link or cookie of a user reaches a log of the pages or of capture, also on errors."""

from pathlib import Path

import httpx2
import pytest
from all_logs import all_logs
from page_stack import ADMIN, stack
from sqlalchemy import Connection, text

MARK = "hush-hush"
USER = f"ann-{MARK}"


def test_of_pages_and_capture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    statuses: list[int] = []
    with all_logs() as lines, stack(tmp_path) as tea, httpx2.Client(base_url=tea.url) as browser:
        tea.client.put(f"/users/{USER}/summary", json={"text": f"Likes {MARK} very much indeed."})
        name = tea.chat(USER, f"What of {MARK}?").json()["id"]
        tea.feedback(USER, answer=name, edit=f"{MARK}!")
        tea.client.post(f"/users/{USER}/feedback", json={"answer": MARK, "thumbs": "up"})
        link = tea.link(USER)
        secrets = [MARK, link.split("link=")[1]]
        for path in (link, f"/me?link={MARK}", "/me", "/me/history", "/me/data", f"/me/{MARK}", f"/me?said={MARK}"):
            statuses.append(browser.get(path).status_code)
        secrets.append(browser.cookies["popi_me"])
        csrf = browser.get("/me").text.split('name="csrf" value="')[1].split('"')[0]
        secrets.append(csrf)
        for path, form in (
            ("add", {"csrf": csrf, "version": "1", "text": MARK}),
            ("add", {"csrf": csrf, "version": MARK, "text": MARK}),
            ("add", {"csrf": MARK, "version": "1", "text": MARK}),
            ("try", {"csrf": csrf, "prompt": MARK}),
        ):
            statuses.append(browser.post(f"/me/{path}", data=form).status_code)
        browser.post("/admin/sign-in", data={"key": ADMIN})
        statuses.append(browser.get(f"/admin/users/shop/{USER}").status_code)
        statuses.append(browser.post("/admin/sign-in", data={"key": MARK}).status_code)

        def drop(connection: Connection) -> None:
            connection.execute(text("DROP TABLE signals"))

        tea.gateway.store.database.write(drop)
        statuses.append(browser.get("/me").status_code)
    assert {200, 303, 401, 403, 404, 503} <= set(statuses), statuses
    logged = "\n".join(lines)
    assert '"route": "pages"' in logged and "the store failed" in logged
    ours = [line for line in lines if not line.startswith("httpcore2.")]  # which the test's own clients log to
    assert [line for line in ours for secret in secrets if secret in line] == []
    streams = capfd.readouterr()
    assert not any(secret in streams.out + streams.err for secret in secrets)

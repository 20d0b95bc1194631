import re
import threading

from popi.serving.store.database import Database
from popi.serving.store.settings import get, id_secret, set_default


def test_drawn_once_and_kept(store_url: str) -> None:
    database = Database.open(store_url)
    secret = id_secret(database)
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert id_secret(database) == secret
    database.close()
    again = Database.open(store_url)
    assert id_secret(again) == secret
    again.close()


def test_all_who_start_together_get_the_same(store_url: str) -> None:
    databases = [Database.open(store_url) for _ in range(4)]
    gate, found = threading.Barrier(4), []

    def start(database: Database) -> None:
        gate.wait()
        found.append(id_secret(database))

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    for database in databases:
        database.close()


def test_the_first_value_stays(database: Database) -> None:
    assert database.read(get, "a") is None
    assert database.write(set_default, "a", "1") == "1"
    assert database.write(set_default, "a", "2") == "1"
    assert database.read(get, "a") == "1" and database.read(get, "b") is None

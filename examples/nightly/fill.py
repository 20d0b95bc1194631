"""Adds users of the nano world to a gateway through its profile API, as training data for a night.

POPI_KEY=… python examples/nightly/fill.py --url http://localhost:8600 --users 300
"""

import argparse

import popi
from popi.nano.world import make_users


def main() -> None:
    """Import the users."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", default="http://localhost:8600", help="the gateway's URL; its app key is read from POPI_KEY"
    )
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="seed of the users; another one gives other users")
    options = parser.parse_args()
    people = [person.user for person in make_users(options.users, options.seed, "train")]
    with popi.Client(options.url) as client:
        for start in range(0, len(people), 100):
            answer = client.import_users(people[start : start + 100])
            print(f"{answer.users} users, {answer.added} signals added, {answer.duplicates} duplicates")


if __name__ == "__main__":
    main()

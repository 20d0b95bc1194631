"""How well a nano base does its job: what it reads from signals when asked to go through them, and what it writes.

python benchmarks/nano_base.py [--model NAME_OR_FOLDER] [--users N] [--split train|test]
"""

import argparse

from rich.console import Console
from rich.table import Table

from popi.evaluation.metrics import attribute_scores
from popi.inference_model import InferenceModel
from popi.nano.attributes import ATTRIBUTES
from popi.nano.tasks import TALLY, UNCARED
from popi.nano.truth import ideal_summary, named_attributes
from popi.nano.world import make_users


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    options = parser.parse_args()
    users = make_users(options.users, 7, options.split)
    inference_model = InferenceModel.from_pretrained(options.model)
    local = inference_model.local
    tallies = []
    for user in users:
        messages = inference_model.templates.inference_messages(user.user.signals)
        ids = local.encode_chat([messages[0], {"role": "user", "content": TALLY}])
        words = local.decode(local.generate([ids], max_new_tokens=2 * len(ATTRIBUTES) + 2)[0][0]).rstrip(".").split()
        named = zip(words[::2], words[1::2], strict=False)
        tallies.append({(attribute, word) for attribute, word in named if word != UNCARED})
    summaries = inference_model.summarize_many([user.user.signals for user in users])
    readers = {
        "tally, attribute by attribute": tallies,
        "summary, as the base writes it": [named_attributes(summary.text) for summary in summaries],
        "exact posterior given pairs and edits": [ideal_summary(user) for user in users],
    }
    table = Table("reader", "precision", "recall", title=f"{options.model}, {len(users)} {options.split} users")
    for name, named_sets in readers.items():
        scores = attribute_scores(named_sets, [set(user.preferences.items()) for user in users])
        cells = (f"{s.value or 0:.2f} [{s.low or 0:.2f}, {s.high or 0:.2f}]" for s in scores)
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Weights come from safetensors, and nobody else's code runs: every place that could do otherwise is listed here.

A line that is new in one of these lists needs a reason as good as those beside it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import popi

SOURCE = Path(popi.__file__).parent
LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "PeftModel", "PeftConfig")
"""Of transformers and peft; `from_pretrained` of popi's own classes ends in `models/local/loading.py`."""

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm"}
UNSAFE_CALLS = {
    "torch.load": "unpickles",
    "numpy.load": "unpickles with allow_pickle",
    "np.load": "unpickles with allow_pickle",
    "pandas.read_pickle": "unpickles",
    "pd.read_pickle": "unpickles",
    "yaml.load": "makes any object; yaml.safe_load does not",
    "eval": "runs what it reads",
    "exec": "runs what it reads",
    "os.system": "a shell reads its argument",
    "__import__": "imports a name that was read",
}
ALLOWED: dict[tuple[str, str], str] = {
    ("training/phases/trainer.py", "torch.load"): "random states of a sealed checkpoint, weights_only=True",
}
"""Uses in the package, with the reason for each. transformers' Trainer, too, reads a checkpoint's optimizer and random
states by torch.load(weights_only=True), which runs nothing, once their SHA-256 is the one popi sealed."""


def parsed() -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(SOURCE.rglob("*.py")):
        yield file.relative_to(SOURCE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


NODES = [(name, node) for name, tree in parsed() for node in ast.walk(tree)]
CALLS = [(name, ast.unparse(node.func), node) for name, node in NODES if isinstance(node, ast.Call)]


def test_nothing_unpickles_or_runs_what_it_reads() -> None:
    used = {(name, called) for name, called, _ in CALLS if called in UNSAFE_CALLS}
    assert used == set(ALLOWED)
    for name, called, node in CALLS:
        if called.startswith("subprocess."):
            assert not any(one.arg == "shell" for one in node.keywords), f"{name}: a shell reads the command"


def test_no_module_that_unpickles_is_imported() -> None:
    for name, node in NODES:
        if isinstance(node, ast.Import):
            assert not UNSAFE_MODULES & {alias.name.split(".")[0] for alias in node.names}, name
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] not in UNSAFE_MODULES, name


def test_remote_code_is_refused_wherever_a_model_is_loaded() -> None:
    places = []
    for name, called, node in CALLS:
        owner, _, method = called.rpartition(".")
        if method != "from_pretrained" or owner not in LOADERS:
            continue
        places.append(name)
        said = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if owner.startswith("Peft"):
            continue  # adapters bring no code of their own
        assert said.get("trust_remote_code") == "False", f"{name}: {owner}.from_pretrained"
    assert len(places) >= 4, "the loaders are called otherwise now: this test has to look elsewhere"


def test_remote_code_has_no_other_name() -> None:
    """Neither a setting nor an option turns it on; the words occur where it is refused, and nowhere else."""
    others = {
        (name, ast.unparse(node.value))
        for name, node in NODES
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
    }
    assert {value for _, value in others} == {"False"}
    settings = {ast.unparse(node.target) for _, node in NODES if isinstance(node, ast.AnnAssign)}
    assert not {one for one in settings if "remote_code" in one}

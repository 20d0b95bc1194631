"""The model card of a trained model's folder: README.md, in the Hugging Face hub's format.

It is written when the model is saved, and again with the figures when the run is evaluated.
"""

import json
from pathlib import Path
from typing import Any

import popi
from popi.config import RunConfig
from popi.models.spec import SMOLLM2, SMOLLM2_ID
from popi.runs.files import write_text
from popi.runs.run_directory import RunDirectory
from popi.training.components import GENERATOR, INFERENCE
from popi.training.templates import template_of

CARD = "README.md"
_DESCRIPTIONS = {
    INFERENCE: "An inference model: reads one user's signals and writes a short preference summary.",
    GENERATOR: "A generator: answers a task prompt, given a user's preference summary.",
}
_PHASE_DESCRIPTIONS = {
    "population-dpo": "A baseline generator trained without summaries: population DPO.",
    "fspo": "A baseline generator trained with users' raw signals in its prompt: FSPO (arXiv 2502.19312).",
    "user-embedding": "A baseline generator with a learned soft prompt per training user: P-RLHF (arXiv 2402.05133). "
    "`user_embedding.safetensors` holds the soft prompts; all other users get the generic one.",
    "user-embedding-from-signals": "A baseline generator whose soft prompt is a linear map of the base's "
    "representation of the user's signals, after P-RLHF (arXiv 2402.05133). `user_embedding.safetensors` holds the "
    "map.",
}
_USE = {
    INFERENCE: """from popi import InferenceModel, StatementSignal

model = InferenceModel.from_pretrained("FOLDER")
print(model.summarize([StatementSignal(text="i like short answers.")]).text)""",
    GENERATOR: """from popi import Generator

generator = Generator.from_pretrained("FOLDER")
print(generator.generate("tell me about tea.", summary="likes short answers"))""",
}
_PLAIN = {
    "none": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
    "lora": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
}


def write_card(folder: Path, run: RunDirectory, phase: str, component: str) -> None:
    """Write the card of a component that a phase saved to `folder`."""
    write_text(folder / CARD, card(run, phase, component))


def refresh_cards(run: RunDirectory) -> None:
    """Rewrite the cards of a run's models with the figures of its evaluation."""
    for component in (INFERENCE, GENERATOR):
        for folder in sorted(run.path.glob(f"phases/*/{component}")):
            write_card(folder, run, folder.parent.name, component)


def card(run: RunDirectory, phase: str, component: str) -> str:
    """The card's text.

    Args:
        run: the run directory.
        phase: the phase that trained the model.
        component: `inference_model` or `generator`.
    """
    config = run.config
    model = config.model
    how = "all weights" if model.adapter == "none" else f"LoRA adapter of rank {model.lora_rank}"
    parts = [
        _front(config),
        f"# {config.name}: {component.replace('_', ' ')} of phase {phase}\n",
        f"{_PHASE_DESCRIPTIONS.get(phase, _DESCRIPTIONS[component])}\n",
        f"Trained by popi {popi.__version__} ([POPI](https://arxiv.org/abs/2510.17881)).\n",
        _table(
            {
                "Base model": f"`{model.base}`",
                "Trained": f"{how}, phase `{phase}` of the orders {', '.join(config.training.orders)}",
                "Used by": ", ".join(_used_by(run, phase, component)) or "see the run's methods.json",
                "Prompt templates": f"`{template_of(config)}`",
                "Chat template": "from the run's settings" if model.chat_template else "from the base's tokenizer",
                "Summary": f"at most {config.summary.max_tokens} tokens; signals at most {config.signals.token_budget}",
                "Users": _users(config),
                "Held out": _held_out(run),
                "Seed": str(config.seed),
                "Licence": "not stated; the licences of the base model and the data apply",
            }
        ),
        "## Figures\n",
        _figures(run, phase, component),
        "## Use\n",
        f"With popi:\n\n```python\n{_USE[component]}\n```\n",
        _plain(config),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _front(config: RunConfig) -> str:
    base = SMOLLM2_ID if config.model.base == SMOLLM2 else config.model.base
    lines = ["---", "license: unknown"]
    if not Path(base).exists() and base.count("/") == 1 and not base.endswith(".gguf"):
        lines.append(f"base_model: {base}")  # the hub accepts only hub ids here, no folder or `nano`
    lines += [f"library_name: {'peft' if config.model.adapter == 'lora' else 'transformers'}"]
    return "\n".join([*lines, "pipeline_tag: text-generation", "tags:", "- popi", "- personalization", "---\n"])


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items()), ""])


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _users(config: RunConfig) -> str:
    data = config.data
    return f"source `{data.source}`, at most {data.train_users} to train on and {data.test_users} held out"


def _held_out(run: RunDirectory) -> str:
    """How users were split, with the facts that a benchmark's loader recorded."""
    data = run.config.data
    if data.source == "nano":
        return "synthetic users of the world's test split, none of whom was trained on"
    file = run.path / "data.json"
    if not file.is_file():
        return f"the users of `{data.test}`, none of whom was trained on" if data.test else "none named"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    recorded = ", ".join(f"{key} {value}" for key, value in facts.items() if isinstance(value, str | int))
    return f"by user, with the split of the benchmark's loader ({recorded})"


def _used_by(run: RunDirectory, phase: str, component: str) -> list[str]:
    return [method for method, of in run.methods().items() if of[component] == f"phases/{phase}/{component}"]


def _figures(run: RunDirectory, phase: str, component: str) -> str:
    """Reward accuracies in metrics.json of the methods that use this model and of those that train nothing."""
    try:
        measured = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "Not evaluated yet; `popi evaluate` writes the figures here.\n"
    trained = run.methods()
    own = _used_by(run, phase, component)
    lines = ["| Method | Reward accuracy | 95 % interval | Tokens added |", "|---|---|---|---|"]
    for name, entry in measured["methods"].items():
        order = name.removeprefix("popi_")
        if order in own or order not in trained:
            accuracy = entry["reward_accuracy"]
            interval = " to ".join(f"{accuracy[key]:.3f}" for key in ("low", "high") if accuracy.get(key) is not None)
            row = (name, f"{accuracy['value']:.3f}", interval or "–", f"{entry['context_overhead_tokens']:.1f}")
            lines.append(f"| {' | '.join(row)} |")
    people = f"{measured['n_users']} held-out users, {measured['n_pairs']} target pairs, seed {measured['seed']}"
    return "\n".join([*lines, "", f"On {people}; intervals are clustered by user.", ""])


def _plain(config: RunConfig) -> str:
    model = config.model
    base = {SMOLLM2: SMOLLM2_ID}.get(model.base, model.base)
    text = _PLAIN[model.adapter].replace("{base!r}", repr(base))
    note = ""
    if model.adapter == "lora" and model.base in (SMOLLM2, "nano") or model.base.endswith(".gguf"):
        note = (
            "\npopi resolves the base's name, which is popi's own or a GGUF file's; transformers needs its folder, hub "
            "id, or `gguf_file`.\n"
        )
    return f"Without popi:\n\n```python\n{text}\n```\n{note if model.adapter == 'lora' else ''}"

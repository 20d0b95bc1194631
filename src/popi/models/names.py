"""The names that popi itself gives models. Imports nothing heavy."""

from pathlib import Path

NANO = Path(__file__).parent.parent / "nano" / "base"
"""Where `nano` lies, the base model that ships."""
SMOLLM2 = "smollm2"
SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

"""The nano world's tokenizer: the world's words, and single characters for everything else."""

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from popi.nano import attributes, grammar, world

SPECIAL = ("<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FRAME = (
    "signals of this user : pair prompt chosen rejected interaction response rating edit post context statement"
    " demographic none preferences describe what this user prefers likes wants and no clear preference does care about"
    " works as what compare the two same nothing have is or in short"
)
"""Words of the prompt templates and of the base's tasks."""


def _strings(value: object) -> list[str]:
    """Every string in nested containers, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in _strings(part)]
    if isinstance(value, tuple | list | set):
        return [s for part in value for s in _strings(part)]
    return []


def vocabulary() -> list[str]:
    """Special tokens, then every word of the world, then single characters and their continuations, in fixed order."""
    texts = [FRAME, *attributes.ATTRIBUTES]
    for module in (attributes, grammar, world):
        for name, value in sorted(vars(module).items()):
            if name.isupper() and name not in ("KEYWORDS",):
                texts += _strings(value)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())}
    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = {w for w in words if not set(w) & set("{}_")} - set(letters)
    return [*SPECIAL, *sorted(words), *letters, *(f"##{c}" for c in letters)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with a chat template. It is built from a fixed vocabulary without any training."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<|unk|>", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:5]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )

"""Find the files of a split, in a folder or in a Hugging Face dataset."""

import re
from pathlib import Path

from popi.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
"""File types, by priority: if a split exists in several, only the first is read, so that no row is read twice."""
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
"""Words in a file's or folder's name that identify its split."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_USERS = re.compile(rf"(?P<id>{HUB_ID.pattern})(:(?P<split>[\w.-]+))?")
_SHARD = re.compile(r"(\d+)-of-(\d+)")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))


def _split_of(folder: Path, file: Path) -> str | None:
    """The split named by a file's name, or by a folder between it and `folder`."""
    for part in reversed(file.relative_to(folder).parts):
        for word in re.split(r"[-_.]", part.lower()):
            if word in SPLITS:
                return word
    return None


def files_of(folder: Path, split: str) -> list[Path]:
    """All files of a split, of one file type; empty if the folder does not hold the split.

    Raises:
        DataError: if a shard is missing.
    """
    files = _files(folder)
    named = {file: _split_of(folder, file) for file in files}
    if split not in SPLITS:  # any other name must be a prefix of the path
        chosen = [file for file in files if re.match(rf"{re.escape(split)}\b", file.relative_to(folder).as_posix())]
    else:
        chosen = [file for file in files if named[file] == split]
    if not chosen and split == "train" and not any(named.values()):
        chosen = files
    chosen = [file for file in chosen if file.suffix == next(s for s in SUFFIXES if any(f.suffix == s for f in chosen))]
    shards = [(int(match[1]), int(match[2])) for file in chosen if (match := _SHARD.search(file.stem))]
    if shards and len({total for _, total in shards}) == 1 and len({number for number, _ in shards}) < shards[0][1]:
        missing = sorted(set(range(shards[0][1])) - {number for number, _ in shards})
        raise DataError(
            f"{folder}: split {split!r} lacks shard {missing[0]:05d} of {shards[0][1]:05d}; copy all shards"
        )
    return chosen


def splits_in(folder: Path) -> str:
    """The splits that a folder holds, for messages."""
    return ", ".join(sorted({_split_of(folder, file) or "no split named" for file in _files(folder)})) or "no files"


def on_hub(place: str | Path) -> tuple[str, str] | None:
    """(dataset, split) if `place` refers to the hub: `owner/name` is the `train` split, `owner/name:test` another one.
    None for existing local paths, and for names with a data file's suffix.
    """
    match = _USERS.fullmatch(str(place))
    if match is None or Path(place).suffix in (*SUFFIXES, ".gz") or Path(place).exists():
        return None
    return match["id"], match["split"] or "train"


def hub_files(place: str | Path, *, cached: bool = False) -> list[Path]:
    """Local copies of a hub split's files, downloaded to the cache of `huggingface_hub` if necessary.

    Args:
        place: as in `on_hub`.
        cached: only use the cache.

    Raises:
        DataError: if there is no such dataset or split, or it can't be downloaded.
    """
    named = on_hub(place)
    if named is None:
        raise DataError(f"{place}: not a hub dataset (owner/name, or owner/name:split)")
    repository, split = named
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            f"{place}: no such file, and reading from the hub needs huggingface_hub; pip install 'popi[train]'"
        ) from None
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=patterns, local_files_only=cached)
    except Exception as error:  # the hub client raises exceptions of many libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place}: no such file, and loading it as a hub dataset failed ({reason}); pass a file, or a dataset as "
            "owner/name"
        ) from None
    files = files_of(Path(folder), split)
    if not files:
        raise DataError(
            f"{place}: this dataset has no parquet or JSONL file of split {split!r}; it holds: "
            f"{splits_in(Path(folder))}; choose one as {repository}:split"
        )
    return files

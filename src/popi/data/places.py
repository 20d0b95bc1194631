"""Where data lie: the files of a split in a folder, or in a data set on the Hugging Face hub."""

import re
from pathlib import Path

from popi.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
"""Kinds of file, the first one taken where a split stands in several: the same rows are not read twice."""
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
"""Words that say in a file's or a folder's name which split it holds."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_USERS = re.compile(rf"(?P<id>{HUB_ID.pattern})(:(?P<split>[\w.-]+))?")
_SHARD = re.compile(r"(\d+)-of-(\d+)")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))


def _split_of(folder: Path, file: Path) -> str | None:
    """The split that a file's name, or else a folder between it and `folder`, says."""
    for part in reversed(file.relative_to(folder).parts):
        for word in re.split(r"[-_.]", part.lower()):
            if word in SPLITS:
                return word
    return None


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split, of one kind, complete; none if the folder does not hold the split.

    Raises:
        DataError: a shard is missing.
    """
    files = _files(folder)
    named = {file: _split_of(folder, file) for file in files}
    if split not in SPLITS:  # a split of another name: as the name's beginning
        mine = [file for file in files if re.match(rf"{re.escape(split)}\b", file.relative_to(folder).as_posix())]
    else:
        mine = [file for file in files if named[file] == split]
    if not mine and split == "train" and not any(named.values()):
        mine = files
    mine = [file for file in mine if file.suffix == next(s for s in SUFFIXES if any(f.suffix == s for f in mine))]
    shards = [(int(found[1]), int(found[2])) for file in mine if (found := _SHARD.search(file.stem))]
    if shards and len({of for _, of in shards}) == 1 and len({number for number, _ in shards}) < shards[0][1]:
        missing = sorted(set(range(shards[0][1])) - {number for number, _ in shards})
        raise DataError(f"{folder}: split {split!r} lacks shard {missing[0]:05d} of {shards[0][1]:05d}; copy all of it")
    return mine


def held(folder: Path) -> str:
    """The splits that a folder holds, for messages."""
    return ", ".join(sorted({_split_of(folder, file) or "no split named" for file in _files(folder)})) or "no files"


def on_hub(place: str | Path) -> tuple[str, str] | None:
    """(data set, split) if users lie on the hub: `owner/name` is its `train` split, `owner/name:test` another one. None
    for what is here, and for names that end as those of files do.
    """
    found = _USERS.fullmatch(str(place))
    if found is None or Path(place).suffix in (*SUFFIXES, ".gz") or Path(place).exists():
        return None
    return found["id"], found["split"] or "train"


def hub_files(place: str | Path, *, cached: bool = False) -> list[Path]:
    """The files of users on the hub, as copies in the cache of `huggingface_hub`; its download is kept there.

    Args:
        place: as in `on_hub`.
        cached: only look into the cache.

    Raises:
        DataError: there is no such data set or split, or it can't be downloaded.
    """
    named = on_hub(place)
    if named is None:
        raise DataError(f"{place}: is no data set on the hub (owner/name, or owner/name:split)")
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
    except Exception as error:  # the hub's client raises errors of many libraries, none of them the user's fault
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place}: no such file here, and as a data set on the hub it can't be loaded ({why}); name a file, or a "
            "data set as owner/name"
        ) from None
    files = files_of(Path(folder), split)
    if not files:
        raise DataError(
            f"{place}: no parquet or JSONL file of split {split!r} in this data set; it holds: {held(Path(folder))}; "
            f"name one as {repository}:split"
        )
    return files

"""Phrases and names that this project once overused and no colleague would say, in the folders that are done.

A list of patterns is no style guide: what it can't match is for a reader. Add a folder to `DONE` once it has been
rewritten, and a phrase to `PHRASES` once it has been met often and is always wrong.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

DONE = (
    ".ci",
    ".github",
    "CHANGELOG.md",
    "CITATION.cff",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "benchmarks",
    "clients/js/README.md",
    "clients/js/index.d.ts",
    "clients/js/index.js",
    "clients/js/test",
    "clients/js/types.d.ts",
    "compose.yaml",
    "configs",
    "deploy",
    "docs",
    "examples",
    "mkdocs.yml",
    "pyproject.toml",
    "release",
    "src/popi",
)
"""Folders and files, relative to the root."""
SUFFIXES = {
    "",
    ".cff",
    ".ipynb",
    ".j2",
    ".js",
    ".html",
    ".md",
    ".mjs",
    ".py",
    ".service",
    ".sh",
    ".toml",
    ".tpl",
    ".ts",
}
SUFFIXES |= {".txt", ".yaml", ".yml"}
"""Not `.jsonl` and the like, which are data."""
EXCEPT = ("src/popi/profiles/statements/phrases.py", "src/popi/nano/base")
"""Data in files with one of those suffixes."""

COUNTED = (
    "answers?|bytes|characters|clauses?|figures?|files?|forwards?|groups?|jobs?|letters?|lines?|numbers?|pairs?|passes|"
    "penalty|prompts?|queries|requests?|rewards?|rows?|runs|seconds|signals?|statements?|steps?|summaries|summary|"
    "targets?|tasks?|texts?|threads?|tokens?|users?|verdicts?|weights?|windows?|words?"
)
UNITS = (
    "answer|batch|benchmark|branch|call|cell|client|file|folder|generator|group|key|layer|method|model|pair|phase|"
    "process|request|row|run|seed|signal|step|summary|target|task|tenant|token|topic|user|window"
)

# A space stands for any gap in running text: also a line's end, with the marks of a comment or of a broken string.
PHRASES = [
    (rf"one (?:[a-z]+ )?(?:{COUNTED}) an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    (rf"a (?:file|line|text|row|pair|token|penalty|prompt|summary) an? (?:{UNITS})(?! of)", "per user, per token"),
    (rf"tokens an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    (rf"steps an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    (rf"signals an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    (rf"pairs an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    (rf"rows an? (?:{UNITS})(?! of)", "per user, per token, per folder"),
    ("most (?:bytes|characters|pairs|rows|seconds|signals|summaries|tokens|users) (?:to|that|per)", "Maximum ..."),
    ("most (?:bytes|characters|pairs|rows|seconds|signals|summaries|tokens|users) of an?", "Maximum ..."),
    ("anew", "again, recomputed, rewritten"),
    ("told (?:of|how|what|where|once|by|at)", "reported, passed, shown"),
    ("told apart", "distinguished"),
    ("told from", "distinguished from"),
    ("kept as (?:it|they) (?:comes?|came)", "saved as it arrives"),
    ("kept ready", "cached"),
    ("is left out", "is omitted, excluded, skipped"),
    ("are left out", "are omitted, excluded, skipped"),
    ("was left out", "was omitted, excluded, skipped"),
    ("were left out", "were omitted, excluded, skipped"),
    ("without a word", "silently"),
    ("a [a-z]+ of (?:its|their|his) own", "its own X; a separate X; dedicated"),
    ("each of its own", "separate"),
    ("that was said", "name the statement"),
    ("can't be told", "is not known; can't be distinguished"),
    ("so late (?:a|an|that)", "after this, ..."),
    ("may be any", "any X is allowed"),
    ("go on with", "resume, continue"),
    ("goes on with", "resumes, continues"),
    ("whoever", "anyone who; name the person"),
    ("whence", "from where"),
    ("if need be", "if necessary"),
    ("in all:", "in total"),
    ("at hand", "available"),
    ("it is none[.,;:)]", "it is not one, it is not a number"),
    ("that is none[.,;:)]", "that is not one"),
    ("looks? on at", "observe, read"),
    ("stands there", "is listed, appears"),
    ("upon the rest", "with the rest of popi"),
    ("nobody (?:said|says|asked|trained|reads|sees|knows)", "passive, or None: 'unseen topics', 'no price is known'"),
    ("none said", "unset"),
    ("everybody did", "name them"),
    ("listen at", "listen on"),
    ("takes any that is free", "0 picks a free port"),
    ("the other way round", "vice versa"),
    ("more likely than not", "name the threshold: 'with probability above 1/2'"),
]
"""(pattern, what to write instead), in lower case. A pattern starts with letters: they are what is searched for."""

NAMES = {
    "found": "what was found: `rows`, `matches`, `summary`",
    "told": "what it holds: `scored`, `message`, `reported`",
    "kept": "what is kept: `stored`, `retained_rows`, `history`",
    "said": "what was said: `statement`, `verdict`, `answer`",
    "behind": "`prefix_length`, `parent`, `previous`",
    "upto": "`limit`, `end`, `cutoff`",
    "whose": "`owner`, `user_id`",
    "what": "a noun: `name`, `kind`, `description`",
    "whence": "`source`",
    "there": "`existing`",
}
"""Names that say nothing, and what to name instead. Fields of classes may keep theirs: files and APIs hold them."""


class Mark(NamedTuple):
    line: int
    phrase: str
    instead: str


GAP = r"""(?:[\s#"']|(?<=["\s])f(?="))+"""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", GAP) + r"(?![a-z_])")


COMPILED = [(_compiled(pattern), instead) for pattern, instead in PHRASES]
ASSIGNED = re.compile(rf"\b(?:{'|'.join(NAMES)})\b\s*(?:[=:,()]|\bin\b)")


def phrases(text: str) -> Iterator[Mark]:
    lower = text.replace("None", "-one").lower()
    for pattern, instead in COMPILED:
        for match in pattern.finditer(lower):
            start = match.start()
            if start and (lower[start - 1].isalnum() or lower[start - 1] in "_-."):
                continue
            yield Mark(lower.count("\n", 0, start) + 1, " ".join(match[0].split()), instead)


def names(text: str) -> Iterator[Mark]:
    """Names that are assigned or taken as arguments, and functions."""
    if not ASSIGNED.search(text):  # parsing is what takes time
        return
    fields = set()
    for node in ast.walk(ast.parse(text)):  # a class before its body
        if isinstance(node, ast.ClassDef):
            fields |= {id(statement.target) for statement in node.body if isinstance(statement, ast.AnnAssign)}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        else:
            continue
        if name in NAMES:
            yield Mark(node.lineno, name, NAMES[name])


def marks(path: Path) -> list[Mark]:
    text = path.read_text(encoding="utf-8")
    return sorted([*phrases(text), *(names(text) if path.suffix == ".py" else ())])


def files() -> Iterator[Path]:
    for place in DONE:
        path = ROOT / place
        assert path.exists(), f"{place} has moved: put its new path into DONE"
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            relative = file.relative_to(ROOT).as_posix()
            if (
                file.is_file()
                and file.suffix in SUFFIXES
                and not any((relative + "/").startswith(each + "/") for each in EXCEPT)
            ):
                yield file


def test_no_mark_of_the_old_dialect() -> None:
    lines = [
        f"{file.relative_to(ROOT)}:{mark.line}: {mark.phrase!r}; instead: {mark.instead}"
        for file in files()
        for mark in marks(file)
    ]
    assert not lines, "\n" + "\n".join(lines)


PLANTED = '''"""Returns one text a user, made
anew.

Args:
    report: is told of every row.
"""

LIMIT = 3
"""Most tokens of a text."""


def add(found: int) -> int:
    # The rows are kept
    # as they come.
    for said, (kept, _) in enumerate([(found, 1)]):
        print(f"{said} is left "
              f"out")
    return kept
'''


def test_planted_marks_are_reported(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    lines = {(mark.line, mark.phrase.split()[0]) for mark in marks(tmp_path / "planted.py")}
    assert lines == {
        (1, "one"),
        (2, "anew"),
        (5, "told"),
        (9, "most"),
        (12, "found"),
        (13, "kept"),
        (15, "said"),
        (15, "kept"),
        (16, "is"),
    }


def test_plain_english_passes(tmp_path: Path) -> None:
    (tmp_path / "plain.md").write_text(
        "One text per user, recomputed for every request. A renewal told us most of what we need; handle it in all "
        "cases, as a text of a user, in its own database, with none of its own.\n"
    )
    assert marks(tmp_path / "plain.md") == []


def test_fields_of_classes_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "wire.py").write_text("class Answer:\n    found: int = 0\n\n    def __init__(self) -> None: ...\n")
    assert marks(tmp_path / "wire.py") == []

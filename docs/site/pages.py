"""MkDocs hook: what the site shows from outside docs/, and links that hold on the site as well as in the repository.

Pages of the repository that stand elsewhere (CONTRIBUTING.md, …) become pages of the site. A link from a page to any
other file outside docs/ leads into the repository where its address is known (`repo_url` in mkdocs.yml, or
`project.urls.Repository` in pyproject.toml). Until it is, the file is copied into the site, and a link to a folder
becomes plain text.

Where GitHub's Markdown and Python-Markdown differ, pages are brought to the latter. On GitHub a list needs no blank
line before it, the content of an item is indented by two or three spaces, `\\|` in a table's code is a bar, and `[4]`
before a link is not the link's text.
"""

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/code_of_conduct.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "clients/js/README.md": "javascript.md",
    "examples/README.md": "examples.md",
}
"""From a file of the repository to its page on the site."""
HOME = {"README.md": "index.md"}
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<to>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
ITEM = re.compile(r"([-*]|\d+\.) ")
NUMBER = re.compile(r"\[(\d+)\](?![(:])")
INDENTED = re.compile(r"( +)((?:[-*]|\d+\.) )?")
CODE = re.compile(r"`[^`]*`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the repository's address from pyproject.toml unless mkdocs.yml has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = config.repo_url or project.get("urls", {}).get("Repository")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's Markdown with its links and lists as the site needs them."""
    here = page.file.src_uri
    source = {made: file for file, made in PAGES.items()}.get(here, f"docs/{here}")

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["to"]))
        text, anchor = link["text"], link["anchor"] or ""
        uri = (PAGES | HOME).get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if uri is None and config.repo_url:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{text}({config.repo_url.rstrip('/')}/{kind}/main/{target}{anchor})"
        if uri is None:
            if (ROOT / target).is_dir():
                return text[1:-1]
            uri = f"repository/{target}"
            if (ROOT / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        return f"{text}({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    outside_code = re.split(r"(?s)(^```.*?^```)", markdown, flags=re.MULTILINE)
    for index in range(0, len(outside_code), 2):
        text = LINK.sub(lead, "\n".join(as_python_markdown(outside_code[index].split("\n"))))
        outside_code[index] = NUMBER.sub(r"&#91;\1&#93;", text)
    return "".join(outside_code)


def as_python_markdown(lines: list[str]) -> list[str]:
    """Lines outside code as Python-Markdown wants them: lists set off, their content indented by four spaces."""
    made: list[str] = []
    in_list = nested = loose = False
    for line in lines:
        before = made[-1] if made else ""
        blanks = INDENTED.match(line)
        if ITEM.match(line):
            if before.strip() and (loose or not in_list):
                made.append("")
            in_list, nested, loose = True, False, loose and in_list
        elif in_list and blanks and 2 <= len(blanks[1]) < 6:
            nested, loose = nested or bool(blanks[2]), loose or not before.strip()
            inner = nested and not blanks[2] and len(blanks[1]) >= 4
            line = " " * (8 if inner else 4) + line.lstrip()
        elif line.strip() and not before.strip():
            in_list = False
        if line.lstrip().startswith("|"):
            line = CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
        made.append(line)
    return made

"""Writes the report: report.html and report.md in the run directory."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from popi.errors import RunError
from popi.evaluation.report.compare import Compared
from popi.evaluation.report.content import report_content
from popi.evaluation.report.grid import GRID, own_cells
from popi.evaluation.report.markdown import markdown
from popi.evaluation.tables import methods_table


def write_report(run_dir: str | Path, against: Sequence[str | Path] = ()) -> Path:
    """Write `report.html` and `report.md` to an evaluated run's directory, replacing older ones; returns the HTML path.

    Args:
        run_dir: the run.
        against: other evaluated runs to compare with.

    Raises:
        RunError: there is no metrics.json, or a file of a run can't be read.
    """
    run_dir = Path(run_dir)
    if (run_dir / GRID).is_file():
        raise RunError(
            f"{run_dir} is a grid; name one of its cells for a report: {', '.join(map(str, own_cells(run_dir)))}"
        )
    runs = [Compared.read(path) for path in (run_dir, *map(Path, against))]
    content = report_content(runs)
    _replace(run_dir / "report.md", markdown(content))
    _replace(run_dir / "report.html", page(content))
    return run_dir / "report.html"


def write_reports(path: str | Path, against: Sequence[str | Path] = ()) -> list[Path]:
    """`write_report` for a run or a grid's cell; for a grid, one report per benchmark.

    Raises:
        RunError: as in `write_report`; or nothing of the grid was scored; or a grid with several benchmarks is
            compared with other runs.
    """
    path = Path(path)
    if not (path / GRID).is_file():
        return [write_report(path, against)]
    cells = own_cells(path)
    if not cells:
        raise RunError(f"{path}: nothing of this grid was scored with a run's own generator")
    if against and len(cells) > 1:
        raise RunError(f"{path} has several benchmarks; name one of its cells: {', '.join(map(str, cells))}")
    return [write_report(cell, against) for cell in cells]


def page(content: Mapping[str, Any]) -> str:
    """A self-contained HTML file with inline styles and script.

    Its content security policy allows only that script, by hash, so markup in text by models or users can't run.
    """
    environment = Environment(
        loader=PackageLoader("popi.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = files("popi.evaluation.report")
    script, style = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {**content, "script": Markup(script), "style": Markup(style), "script_hash": digest}
    return environment.get_template("page.html.j2").render(shown)


def print_table(metrics: Mapping[str, Any], console: Console) -> None:
    """The table of methods in the terminal."""
    console.print(methods_table(metrics))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

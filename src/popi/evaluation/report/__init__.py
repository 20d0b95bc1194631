"""The report of a run, or of several side by side, from their files; needs no models and no network.

files.py and grid.py read; tables.py, compare.py and people.py make the parts; content.py combines them; write.py and
markdown.py write the result.
"""

from popi.evaluation.report.content import best_popi
from popi.evaluation.report.people import prompt_text
from popi.evaluation.report.write import print_table, write_report, write_reports

__all__ = ["best_popi", "print_table", "prompt_text", "write_report", "write_reports"]

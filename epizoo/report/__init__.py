"""The HTML report of a run: figures, tables and one page per patient, in files that need no network."""

from epizoo.report.report import build_report

__all__ = ["build_report"]

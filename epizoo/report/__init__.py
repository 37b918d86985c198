"""What a person looks at: figures and one self-contained HTML page a cohort."""

from epizoo.report.report import build_report

__all__ = ["build_report"]

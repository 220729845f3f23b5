"""One self-contained page about a run."""

from speculators.evaluation.report.page import write_report

__all__ = ["write_report"]

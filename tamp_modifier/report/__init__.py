"""What a run decided and reached: plain data, and how it is shown."""

from tamp_modifier.report.model import LinearReport, PruningReport, ReportError, linear_type

__all__ = ["LinearReport", "PruningReport", "ReportError", "linear_type"]

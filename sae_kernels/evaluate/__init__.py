"""Evaluation: streaming metrics, and what a language model makes of the reconstructions."""

from __future__ import annotations

from .batch import EvalBatch, MetricInstance
from .loop import evaluate
from .quotient import Quotient
from .recovered import ce_recovered
from .report import table
from .run import evaluate_run

__all__ = ["EvalBatch", "MetricInstance", "Quotient", "ce_recovered", "evaluate", "evaluate_run", "table"]

"""Metrics of a task stream: plain functions on arrays and counts. Knows numpy and nothing else."""

from __future__ import annotations

from cl_runner.metrics.cost import format_bytes, format_count, format_flops, format_seconds
from cl_runner.metrics.matrix import METRICS, summarize

__all__ = ["METRICS", "format_bytes", "format_count", "format_flops", "format_seconds", "summarize"]

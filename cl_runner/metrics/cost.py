"""Costs for people to read: counts, seconds, FLOPs and bytes with three digits and a unit. None reads N/A."""

from __future__ import annotations

import math

NOT_APPLICABLE = "N/A"


def format_count(count: float | None) -> str:
    """Formats a number of things, e.g. 1234567 as "1.23 M"; below a thousand the integer itself."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T", "P"))


def format_flops(flops: float | None) -> str:
    """Formats a number of floating-point operations (not a rate), e.g. 2.5e12 as "2.50 TFLOPs"."""
    return _scaled(flops, 1000, ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs"))


def format_bytes(n_bytes: float | None) -> str:
    """Formats bytes in powers of 1024, e.g. 1536 as "1.50 KiB"."""
    return _scaled(n_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_seconds(seconds: float | None) -> str:
    """Formats a duration in seconds, e.g. 0.25 as "0.25 s", 75 as "1 min 15 s", 3700 as "1 h 01 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_APPLICABLE
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _scaled(value: float | None, base: int, units: tuple[str, ...]) -> str:
    if value is None or not math.isfinite(value):
        return NOT_APPLICABLE
    scaled, unit = float(value), 0
    # 999.5 of a unit would be written as 1000 of it, which is 1.00 of the next
    while abs(scaled) >= (999.5 if base == 1000 else 1023.5) and unit < len(units) - 1:
        scaled, unit = scaled / base, unit + 1
    if unit == 0:
        number = f"{value:.0f}"
    else:
        number = f"{scaled:.{_decimals(scaled)}f}"
    return f"{number} {units[unit]}".rstrip()


def _decimals(scaled: float) -> int:
    """Returns how many decimals give three digits."""
    return 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0

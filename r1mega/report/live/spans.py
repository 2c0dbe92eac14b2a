"""Times and figures as people read them."""

import datetime
import math


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if not math.isfinite(seconds):
        return "an unknown time"
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {s:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time, UTC; "" of 0."""
    if not 0 < seconds < 1e11:
        return ""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def figure(value: float) -> str:
    """A measured number in four digits."""
    if value == 0:
        return "0"
    size = abs(value)
    if 0.001 <= size < 10_000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 10_000 <= size < 1e9 else f"{value:.2e}"

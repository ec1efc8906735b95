"""Bandwidths and times as people write them."""

from __future__ import annotations

import re

from compiler.errors import OptionError

_RATE = re.compile(r"([0-9]*\.?[0-9]+) *([kKMG]?)(bit|b|bps|B|byte)(?:/s|ps)?")
_TIME = re.compile(r"([0-9]*\.?[0-9]+) *(s|ms|us)")
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def bits_per_second(text: str) -> float:
    """A bandwidth: "10Mbit", "1 Gbit/s", "2MB" (bytes). Raises OptionError for another text."""
    found = _RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise OptionError(f"{text!r} is not a bandwidth", "write it as 10Mbit, 500kbit, 1Gbit, or in bytes as 2MB")
    return float(found[1]) * _PREFIX[found[2]] * (8 if found[3] in ("B", "byte") else 1)


def seconds(text: str) -> float:
    """A time: "20ms", "0.1s". Raises OptionError for another text."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is not a time", "write it as 20ms or 0.1s")
    return float(found[1]) * _SECONDS[found[2]]

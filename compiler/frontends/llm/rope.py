"""Rotary position embeddings, with the kinds of RoPE scaling that transformers defines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import InvalidModelError, OptionError

MAX_HEAD_SIZE = 1 << 14
PROPORTIONAL = "proportional"  # the scaling kind that rotates whole heads, regardless of the configured part
Frequencies = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True)
class Rope:
    """Pairs (x[i], x[i + size / 2]) of the first `size` elements of a head, rotated by position * frequencies[i].

    Attributes:
        frequencies: float32 (size / 2,), as a tuple.
        factor: factor of cosine and sine.
        long_frequencies: frequencies for sequences longer than `original_context`; None: `frequencies` always.
        original_context: context length of the model's training, if it matters.
        dynamic: (base, factor): the base grows with the length beyond `original_context`; None: constant base.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    original_context: int = 0
    dynamic: tuple[float, float] | None = None

    @property
    def size(self) -> int:
        """Number of rotated elements per head."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class RopeSettings:
    """Settings that determine the frequencies: `size` elements are rotated; `scaling` is as in `rope_parameters`."""

    size: int
    base: float
    context: int
    scaling: Mapping[str, Any]

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of the scaling. Raises InvalidModelError if it is missing or not a number."""
        value = self.scaling.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidModelError(f"the rope scaling's {key!r} is {value!r}, not a number")
        return float(value)

    @property
    def original(self) -> int:
        """Positions the model was trained on."""
        return int(self.number("original_max_position_embeddings", self.context))


def make_rope(settings: RopeSettings) -> Rope:
    """Return the embedding described by settings. Raises InvalidModelError if a size or number of the scaling is
    missing or out of range, and OptionError if the kind of scaling is unknown."""
    if settings.size < 2 or settings.size % 2 or settings.size > MAX_HEAD_SIZE or not 0 < settings.base < math.inf:
        raise InvalidModelError(f"rope of {settings.size} elements with base {settings.base}")
    kind = settings.scaling.get("rope_type", settings.scaling.get("type", "default")) or "default"
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise OptionError(f"rope scaling {str(kind)[:80]!r} is not supported", f"supported: {known}")
    try:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            return _divided(_KINDS[kind](settings), settings.scaling.get("divisors"))
    except (ArithmeticError, ValueError, TypeError) as error:  # ValueError: from math.log; TypeError: from lists
        raise InvalidModelError(f"the parameters of the rope scaling {kind!r} are invalid: {error}") from error


def _divided(rope: Rope, divisors: Sequence[float] | None) -> Rope:
    """Divide each frequency by its own divisor, as GGUF files store Llama 3's scaling."""
    if divisors is None:
        return rope
    if len(divisors) != len(rope.frequencies):
        raise InvalidModelError(f"{len(divisors)} divisors of {len(rope.frequencies)} frequencies of the rope")
    return replace(rope, frequencies=tuple(f / d for f, d in zip(rope.frequencies, divisors, strict=True)))


def _inverse(settings: RopeSettings, base: float | None = None) -> Frequencies:
    """Return 1 / base**(2 i / size), rounded like in float32 arithmetic."""
    exponents = np.arange(0, settings.size, 2).astype(np.float32) / np.float32(settings.size)
    powers = np.float32(settings.base if base is None else base) ** exponents
    return (np.float32(1.0) / powers).astype(np.float32)


def _tuple(frequencies: np.ndarray) -> tuple[float, ...]:
    return tuple(float(each) for each in frequencies.astype(np.float32))


def _default(settings: RopeSettings) -> Rope:
    return Rope(_tuple(_inverse(settings)))


def _linear(settings: RopeSettings) -> Rope:
    return Rope(_tuple(_inverse(settings) / np.float32(settings.number("factor"))))


def _dynamic(settings: RopeSettings) -> Rope:
    if settings.size < 4:
        raise InvalidModelError("dynamic rope scaling needs at least 4 rotated elements")
    if settings.scaling.get("alpha"):  # Hunyuan's base is scaled for all lengths
        stretched = settings.number("alpha") ** (settings.size / (settings.size - 2))
        return Rope(_tuple(_inverse(settings, settings.base * stretched)))
    return Rope(
        _tuple(_inverse(settings)),
        original_context=settings.context,
        dynamic=(settings.base, settings.number("factor")),
    )


def _llama3(settings: RopeSettings) -> Rope:
    frequencies = _inverse(settings)
    factor, low, high = (settings.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = settings.original
    lengths = 2 * math.pi / frequencies
    scaled = np.where(lengths > original / low, frequencies / np.float32(factor), frequencies)
    smooth = (original / lengths - low) / (high - low)
    between = (1 - smooth) * scaled / np.float32(factor) + smooth * scaled
    medium = ~(lengths < original / high) & ~(lengths > original / low)
    return Rope(_tuple(np.where(medium, between, scaled)))


def _yarn(settings: RopeSettings) -> Rope:
    size, base = settings.size, settings.base
    original = settings.original
    factor = settings.number("factor", settings.context / original)

    def dimension(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(settings.number("beta_fast", 32.0))
    high = dimension(settings.number("beta_slow", 1.0))
    if settings.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    extrapolated = _inverse(settings)
    interpolated = extrapolated / np.float32(factor)
    return Rope(_tuple(interpolated * ramp + extrapolated * (1 - ramp)), factor=_yarn_factor(settings, factor))


def _yarn_factor(settings: RopeSettings, factor: float) -> float:
    """Return the factor of cosine and sine."""
    if settings.scaling.get("attention_factor") is not None:
        return settings.number("attention_factor")
    both = [settings.scaling.get(key) for key in ("mscale", "mscale_all_dim")]

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if all(both):
        return magnitude(settings.number("mscale")) / magnitude(settings.number("mscale_all_dim"))
    return magnitude(1.0)


def _longrope(settings: RopeSettings) -> Rope:
    """Each frequency has two divisors, one for short and one for long sequences."""
    original = settings.original
    divisors = []
    for key in ("short_factor", "long_factor"):
        factors = settings.scaling.get(key)
        if not isinstance(factors, list | tuple) or len(factors) != settings.size // 2:
            raise InvalidModelError(f"the rope scaling's {key!r} must be {settings.size // 2} numbers")
        divisors.append(np.asarray(factors, np.float32))
    exponents = np.arange(0, settings.size, 2).astype(np.float32) / np.float32(settings.size)
    powers = np.float32(settings.base) ** exponents
    short, long = (np.float32(1.0) / (each * powers) for each in divisors)
    factor = settings.scaling.get("factor")
    stretch = settings.number("factor") if factor is not None else settings.context / original
    attention = settings.scaling.get("attention_factor")
    if attention is None:
        scale = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    else:
        scale = settings.number("attention_factor")
    return Rope(_tuple(short), factor=scale, long_frequencies=_tuple(long), original_context=original)


def _proportional(settings: RopeSettings) -> Rope:
    """Frequencies of the whole head, only the first of which are nonzero (Gemma 4)."""
    rotated = int(settings.number("partial_rotary_factor", 1.0) * settings.size // 2)
    frequencies = _inverse(settings) / np.float32(settings.number("factor", 1.0))
    return Rope(_tuple(np.where(np.arange(settings.size // 2) < rotated, frequencies, np.float32(0.0))))


_KINDS = {
    "default": _default,
    PROPORTIONAL: _proportional,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first Phi-3 files
}

"""Checked values out of an untrusted config.json: problems are collected, and the file is refused once with all."""

from __future__ import annotations

import math
from collections.abc import Mapping

LARGEST_DIMENSION = 10_000_000  # a hundred times the widest published layer; keeps products far from absurd
LARGEST_DEPTH = 10_000  # layers
LARGEST_SHOWN = 40  # characters of a wrong value that an error message repeats

# transformers 5.23.0 activations.py, ACT2CLS, by what autograd keeps: one fused kernel, or the tanh formula written out
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "relu": "relu",
}

# transformers 5.23.0 configuration_utils.py, _LEGACY_LAYER_TYPE_REMAP
LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


def shown(value: object) -> str:
    """A wrong value as an error message repeats it: short, and on one line.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = "null" if value is None else repr(value)
    return text if len(text) <= LARGEST_SHOWN else text[:LARGEST_SHOWN] + "..."


def is_number(value: object) -> bool:
    """A finite number of JSON; ``true`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Reader:
    """Looks keys up as transformers would: the file's value, by its own name or a synonym, else the family's default.

    Args:
        config: the keys of config.json.
        defaults: what transformers' configuration class assumes for a key that is left out.
        synonyms: other names of a key, as in the class's ``attribute_map``; a synonym wins over the key itself.

    A wrong value becomes a line of ``problems`` and reads as a harmless stand-in, so that reading can go on.
    """

    def __init__(
        self, config: Mapping[str, object], defaults: Mapping[str, object], synonyms: Mapping[str, str] | None = None
    ) -> None:
        self.config = config
        self.defaults = defaults
        self.synonyms = synonyms or {}
        self.problems: list[str] = []

    def value(self, key: str) -> object:
        """The value itself; a synonym that is null counts as left out."""
        for synonym, target in self.synonyms.items():
            if target == key and self.config.get(synonym) is not None:
                return self.config[synonym]
        return self.config[key] if key in self.config else self.defaults[key]

    def refuse(self, key: str, value: object, allowed: str) -> None:
        """Note a problem."""
        self.problems.append(f"{key}: got {shown(value)}; allowed is {allowed}")

    def size(self, key: str, *, least: int = 1, most: int = LARGEST_DIMENSION) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self.value(key)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.refuse(key, value, f"a whole number from {least:,} to {most:,}")
        return max(least, 1)

    def size_or(self, key: str, otherwise: int) -> int:
        """As ``size``; null reads as ``otherwise``."""
        return otherwise if self.value(key) is None else self.size(key)

    def depth(self, key: str = "num_hidden_layers") -> int:
        """L, the number of layers."""
        return self.size(key, most=LARGEST_DEPTH)

    def flag(self, key: str) -> bool:
        """True or false; null is false."""
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.refuse(key, value, "true or false")
        return False

    def probability(self, key: str) -> float:
        """A dropout; null is 0."""
        value = self.value(key)
        if value is None:
            return 0.0
        if isinstance(value, int | float) and is_number(value) and 0 <= value < 1:
            return float(value)
        self.refuse(key, value, "a number from 0 to less than 1")
        return 0.0

    def capped(self, key: str) -> bool:
        """Whether a soft-cap is on: a positive number; null is off."""
        value = self.value(key)
        if value is None:
            return False
        if isinstance(value, int | float) and is_number(value) and value > 0:
            return True
        self.refuse(key, value, "a positive number or null")
        return False

    def activation(self, key: str = "hidden_act") -> str:
        """One of the four activations whose memory is known."""
        value = self.value(key)
        if isinstance(value, str) and value in ACTIVATIONS:
            return ACTIVATIONS[value]
        self.refuse(key, value, ", ".join(ACTIVATIONS))
        return "silu"

    def heads(self, hidden: int, key: str = "num_attention_heads") -> int:
        """a, which divides the hidden size."""
        heads = self.size(key)
        if hidden % heads and hidden > 1:
            self.refuse(key, heads, f"a divisor of the hidden size {hidden:,}")
        return heads

    def kv_heads(self, heads: int, key: str = "num_key_value_heads") -> int:
        """kv, which divides a; null is a."""
        kv_heads = self.size_or(key, heads)
        if heads % kv_heads and heads > 1:
            self.refuse(key, kv_heads, f"a divisor of the {heads:,} attention heads")
        return kv_heads

    def head_dim(self, hidden: int, heads: int) -> int:
        """d; left out or null, hidden / heads."""
        given = "head_dim" in self.config or "head_dim" in self.defaults
        return self.size_or("head_dim", max(1, hidden // heads)) if given else max(1, hidden // heads)

    def rotary(self, head_dim: int, *, key: str = "partial_rotary_factor", default: float = 1.0) -> int:
        """Rotated dimensions of a head: int(d * factor); the factor stands alone or among the rope parameters."""
        factor: object = default
        for candidate in (self.config, self.config.get("rope_parameters"), self.config.get("rope_scaling")):
            if isinstance(candidate, Mapping):
                name = key if candidate is self.config else "partial_rotary_factor"
                factor = candidate.get(name, factor)
        if isinstance(factor, int | float) and is_number(factor) and 0 < factor <= 1:
            return int(head_dim * factor)
        self.refuse(key, factor, "a number above 0 up to 1")
        return head_dim

    def window(self, key: str = "sliding_window") -> int:
        """Sliding window in tokens; null or 0 is none."""
        return 0 if self.value(key) in (None, 0) else self.size(key, most=2**31)

    def sliding(self, layers: int, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """For each layer whether it has a sliding window: ``layer_types``, else the family's pattern."""
        value = self.config.get("layer_types")
        if value is None:
            return default
        if isinstance(value, list) and len(value) == layers and all(isinstance(t, str) for t in value):
            unknown = sorted({t for t in value if t not in LAYER_TYPES})
            if not unknown:
                return tuple(LAYER_TYPES[t] for t in value)
            value = unknown[0]
        self.refuse("layer_types", value, f"a list of {layers:,} of {', '.join(LAYER_TYPES)}")
        return default

    def layer_numbers(self, key: str) -> frozenset[int]:
        """A list of layer numbers; null is none."""
        value = self.value(key)
        if value is None:
            return frozenset()
        if isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            return frozenset(value)
        self.refuse(key, value, "a list of layer numbers")
        return frozenset()

    def nested(self, key: str) -> Mapping[str, object]:
        """An object of keys; null is empty."""
        value = self.value(key)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        self.refuse(key, value, "an object")
        return {}

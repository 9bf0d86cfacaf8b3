"""Checks of JSON values that may be a stranger's, by schemas of the keys that must be there and their rules."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dagm_jax.types import MAX_PIXELS


@dataclass(frozen=True)
class Rule:
    """A condition on a JSON value, and the text that completes "must be …"."""

    text: str
    holds: Callable[[Any], bool]


# Key → rule or schema; keys beside these are allowed.
Schema = Mapping[str, "Rule | Schema"]


def find_fault(value: Any, schema: Rule | Schema, path: str = "") -> str | None:
    """The first value that breaks the schema, such as "data.white (=0) must be …"; None where all is well."""
    if isinstance(schema, Rule):
        return None if schema.holds(value) else f"{path} (={_excerpt(value)}) must be {schema.text}"
    if not isinstance(value, dict):
        return f"{path or 'the content'} (={_excerpt(value)}) must be an object"
    for key, rule in schema.items():
        below = f"{path}.{key}".lstrip(".")
        if key not in value:
            return f"{below} is missing"
        if fault := find_fault(value[key], rule, below):
            return fault
    return None


def _excerpt(value: Any) -> str:
    # A whole number of thousands of digits has no text.
    return ascii(value)[:40] if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"


def is_finite(value: Any) -> bool:
    """Whether the value is a number that float64 holds; math.isfinite raises for larger whole numbers."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_image_shape(value: Any) -> bool:
    """Whether the value is the [height, width] in px of an image that may be read."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(edge) is int for edge in value)
    return is_pair and min(value) >= 1 and value[0] * value[1] <= MAX_PIXELS


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


FINITE = Rule("a finite number", is_finite)
FINITE_LIST = Rule("a list of finite numbers", lambda x: isinstance(x, list) and all(map(is_finite, x)))
STEP = Rule("a whole number of at least 0", lambda x: type(x) is int and x >= 0)
TEXT = Rule("a text", lambda x: isinstance(x, str))
OBJECT = Rule("an object", lambda x: isinstance(x, dict))
GREY = Rule("a grey level in [0, 255]", lambda x: is_finite(x) and 0 <= x <= 255)
IMAGE_SHAPE = Rule(f"[height, width] of at most {MAX_PIXELS} pixels", is_image_shape)
BATCH_SHAPE = Rule(
    f'["b", height, width] of at most {MAX_PIXELS} pixels, or ["b", "h", "w"]',
    lambda x: isinstance(x, list) and len(x) == 3 and (x[1:] == ["h", "w"] or is_image_shape(x[1:])),
)
PAD_MODE = Rule("edge or symmetric", lambda x: x in ("edge", "symmetric"))
WHITE_LEVEL = Rule(
    "null or a whole number in [255, 65535]", lambda x: x is None or (type(x) is int and 255 <= x <= 65535)
)
MODEL_ID = Rule("12 hex digits", _matches("[0-9a-f]{12}"))
SHA256 = Rule("64 hex digits", _matches("[0-9a-f]{64}"))

"""What a request may contain: values that JSON can carry and that every parser can read back."""

from __future__ import annotations

import math
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

MAX_DEPTH = 32  # levels of lists and objects in a request; parsers and serializers fail at different depths above 199

Place = tuple[str | int, ...]


def check_json(value: Any, title: str) -> None:
    """Raise `ValidationError` at the first place of a request that could not be stored and read back as it is.

    Refused are nesting deeper than `MAX_DEPTH` levels, NaN and infinite numbers, integers beyond 64 bits, and lone
    surrogates, which JSON can escape but UTF-8 cannot encode. title: what the value is, for the error.
    """
    waiting: list[tuple[Place, Any]] = [((), value)]
    while waiting:
        place, each = waiting.pop()
        found = _fault(each, place)
        if found is not None:
            where, message = found
            error = PydanticCustomError("json_value", "{message}", {"message": message})
            raise ValidationError.from_exception_data(title, [InitErrorDetails(type=error, loc=where, input=None)])
        if isinstance(each, dict):
            waiting.extend(((*place, key), child) for key, child in each.items())
        elif isinstance(each, list | tuple):
            waiting.extend(((*place, index), child) for index, child in enumerate(each))


def _fault(value: Any, place: Place) -> tuple[Place, str] | None:
    """Return what is wrong with a value itself (not with the values in it) and where, or None."""
    if isinstance(value, str):
        return None if _is_unicode(value) else (place, "contains a lone surrogate, which is not valid Unicode")
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, "must be a finite number: JSON has no NaN and no Infinity")
    if isinstance(value, int):
        is_small = -(2**63) <= value < 2**63
        return None if is_small else (place, "must be an integer of at most 64 bits; write a larger number as a string")
    if isinstance(value, dict | list | tuple) and len(place) >= MAX_DEPTH:
        # The pointer to a value so deep helps nobody; the field that contains it does.
        return place[:1], f"must not nest lists and objects more than {MAX_DEPTH} levels deep"
    if isinstance(value, dict) and not all(_is_unicode(key) for key in value if isinstance(key, str)):
        return place, "has a name with a lone surrogate, which is not valid Unicode"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

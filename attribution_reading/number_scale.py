"""The power of ten that all numbers of a heatmap share, so that two decimals show each of them well."""

from __future__ import annotations

import math

SMALL, LARGE = 0.01, 1000.0  # two decimals show numbers from `SMALL` to below `LARGE` well


def power_of_ten(largest: float) -> int:
    """Return the exponent to write once, beside the colours; 0 where two decimals show the numbers well.

    `largest` is the largest absolute score of the heatmap, finite and not negative.
    """
    return 0 if not largest or SMALL <= largest < LARGE else math.floor(math.log10(largest))


def scaled(number: float, power: int) -> str:
    """Return a number divided by `10 ** power`, with two decimals; a zero has no sign."""
    return f"{number / 10.0**power:.2f}".replace("-0.00", "0.00")

"""The aggregators of this service beside Inseq's: each merges the tokens of a unit of text, and adds their scores up.

`attribution_reading.text_units` finds the units, `attribution.results.unit_aggregation` merges.
"""

from __future__ import annotations

from typing import Any

UNITS = {
    "words": "Merges the tokens of a word (Unicode's, UAX #29); punctuation is apart.",
    "lines": "Merges the tokens of a line.",
    "sentences": "Merges the tokens of a sentence (Unicode's, UAX #29).",
    "paragraphs": "Merges the tokens between blank lines.",
    "messages": "Merges the tokens of a message; of a text without messages, those of the prompt and of the answer.",
    "segments": "Merges the tokens of each of the job's `segments`; generated tokens stay apart.",
}


def describe_units() -> list[dict[str, Any]]:
    """The units as plain data, like Inseq's aggregators: each is the last of a list, behind the method's own."""
    return [{"name": name, "description": text, "parameters": [], "is_unit": True} for name, text in UNITS.items()]

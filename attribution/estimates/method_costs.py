"""What each method costs beside a gradient, in words: counted for a usual text, without a model or a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attribution.catalogue import inseq_catalogue, masked_methods, plain_data
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.traits import UNIT_OF_COST
from attribution.estimates.passes import Shape, of_masking, of_single_pass, of_text
from models import AttributionRequest

# A prompt of 100 tokens and an answer of 20, of a decoder-only model.
USUAL = Shape(source=0, first=100, end=120)
_UNIT = "one forward pass, and a backward pass for each generated token"


@dataclass(frozen=True)
class MethodCost:
    """The tokens that a method's passes run, with its default arguments, divided by those of `UNIT_OF_COST`.

    A backward pass counts as much as a forward: weights are frozen, so that it computes the gradients of inputs alone.
    """

    relative: float
    is_upper_bound: bool  # the method may stop early

    @property
    def words(self) -> str:
        """The cost beside the unit: "about 50 times saliency"."""
        unit = inseq_catalogue.methods()[UNIT_OF_COST].title.lower()
        if not round(self.relative):
            return f"a fraction of {unit}"
        if round(self.relative) == 1:
            return f"as much as {unit}"
        return f"{'at most' if self.is_upper_bound else 'about'} {_rounded(self.relative)} times {unit}"


def describe_methods() -> list[dict[str, Any]]:
    """The catalogue of methods as plain data, in a stable order, with the cost of each."""
    methods = inseq_catalogue.methods()
    return [entry | {"cost": _described(methods[entry["name"]])} for entry in plain_data.of_methods()]


def cost_of(method: Method) -> MethodCost:
    """The cost of a method with its default arguments."""
    return MethodCost(_tokens(method) / _tokens(inseq_catalogue.methods()[UNIT_OF_COST]), method.traits.probes)


def _described(method: Method) -> dict[str, Any]:
    cost = cost_of(method)
    return {
        "relative": float(f"{cost.relative:.3g}"),
        "is_upper_bound": cost.is_upper_bound,
        "words": _UNIT if method.name == UNIT_OF_COST else cost.words,
    }


def _tokens(method: Method) -> int:
    """Tokens of all forward and backward passes, by the engine that usually runs the method."""
    request = AttributionRequest(model="any", method=method.name, input_text="any", candidates=0)  # the method alone
    count = of_single_pass if method.traits.has_single_pass else of_text
    passes = (of_masking if masked_methods.is_masked(request) else count)(request, USUAL)
    return sum(each.calls * each.tokens * (1 + each.backwards) for each in passes)


def _rounded(number: float) -> str:
    """A whole number of two significant digits, with separators: 3,000."""
    return f"{float(f'{number:.2g}'):,.0f}"

"""Checks of a finished result: whether it has tokens, and whether its scores are numbers."""

from __future__ import annotations

from collections.abc import Iterator

from inseq.data import FeatureAttributionOutput
from inseq.models import HuggingfaceModel

from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.next_token import without_own
from problems import AttributionFailed, InputRejected

_GRANULAR = 3  # dimensions: [attributed, generated, width], whose norm may overflow where the scores do not
_UNBOUNDED = (
    ", which JSON writes as null. Ask for a function that does not overflow, such as the logarithm of the probability."
)


def warnings_of_gaps(
    output: FeatureAttributionOutput, method: Method, model: HuggingfaceModel, first: int
) -> Iterator[str]:
    """A warning for scores that are NaN, apart from those of positions from the `first` attributed one on, which some
    steps do not depend on; and for those that are infinite, which JSON has no number for.

    Raises `InputRejected` for a result without tokens, `AttributionFailed` for one whose scores are all NaN.
    """
    advice = f" {method.traits.advice_on_nan}".rstrip()
    for sequence in output.sequence_attributions:
        scores = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
        if sequence.target_attributions is not None:
            scores[-1] = scores[-1][: min(first, sequence.attr_pos_start)]
        if any(each.shape[1] == 0 for each in scores):
            raise InputRejected(
                f"Only {model.pad_token!r} was left to attribute, which is this model's padding: Inseq takes "
                "it away at the end of a text. Give a target with other tokens."
            )
        missing = sum(int(each.isnan().sum()) for each in scores)
        total = sum(each.numel() for each in scores)
        if total and missing == total:
            raise AttributionFailed(f"{method.name} gave no number for this text: every score is NaN.{advice}")
        if missing:
            yield f"{missing} of {total} scores are NaN.{advice}"
        sizes = [each.float().norm(dim=-1) if each.ndim == _GRANULAR else each for each in scores]
        if infinite := sum(int(each.isinf().sum()) for each in sizes):
            yield f"{infinite} of {sum(each.numel() for each in sizes)} scores are infinite{_UNBOUNDED}"
        for name, values in without_own(sequence.step_scores).items():
            if gaps := int(values.float().isnan().sum()):
                yield f"{gaps} of {len(values)} values of {name} are NaN."
            if infinite := int(values.float().isinf().sum()):
                yield f"{infinite} of {len(values)} values of {name} are infinite{_UNBOUNDED}"

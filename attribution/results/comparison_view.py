"""Several methods on the same tokens: what such a request must be, how far it is, and how well the methods agree.

Each method runs as it would alone, on the target that was generated once; here is only what joins them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import orjson
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from attribution.catalogue import checks, inseq_catalogue
from attribution.results import stored_form
from attribution.results.stored_form import ViewOptions
from models import AttributionRequest, ProblemItem, Progress, Stage
from problems import InvalidRequest
from settings import Settings

_SHORTHANDS = ("n_steps", "internal_batch_size")
_TELLING = 0.05  # done, from which on the time that it took says how long the rest will
TOP = 3  # tokens whose overlap is told


# Before the queue


def resolve(request: AttributionRequest, settings: Settings, *, is_encoder_decoder: bool | None) -> AttributionRequest:
    """The request as it will run; each method's is checked as if it were alone.

    Raises `InvalidRequest` with every error found, each with a JSON pointer into the body.
    """
    if request.methods is None:
        return checks.resolve(request, settings, is_encoder_decoder=is_encoder_decoder)
    errors = list(_misplaced(request, request.methods))
    resolved: dict[str, Any] = {}
    for index, name in enumerate(request.methods):
        try:
            one = checks.resolve(_alone(request, name), settings, is_encoder_decoder=is_encoder_decoder)
            resolved[name] = one.attribution_args
        except InvalidRequest as error:
            errors += (_moved(item, name, index) for item in error.errors)
    if errors:
        errors = list(dict.fromkeys(errors))  # what is wrong with all methods is told once
        detail = errors[0].detail if len(errors) == 1 else f"{len(errors)} errors; the first: {errors[0].detail}"
        raise InvalidRequest(detail, errors=errors)
    return request.model_copy(update={"attribution_args": resolved} | dict.fromkeys(_SHORTHANDS))


def _misplaced(request: AttributionRequest, methods: Sequence[str]) -> Iterator[ProblemItem]:
    for index, name in enumerate(methods):
        if name in methods[:index]:
            yield ProblemItem(pointer=f"/methods/{index}", detail=f"{name!r} is named twice.")
    for name, arguments in request.attribution_args.items():
        if name not in methods or not isinstance(arguments, dict):
            yield ProblemItem(
                pointer=checks.pointer("attribution_args", name),
                detail="In a comparison, attribution_args has an object of arguments under the name of a method: "
                f"{', '.join(methods)}.",
            )
    for name in _SHORTHANDS:
        if getattr(request, name) is not None and not any(_has(method, name) for method in methods):
            yield ProblemItem(pointer=f"/{name}", detail=f"None of these methods has {name}.")


def _has(method: str, parameter: str) -> bool:
    known = inseq_catalogue.methods().get(method)
    return known is not None and parameter in known.parameters


def _alone(request: AttributionRequest, name: str) -> AttributionRequest:
    """One method's request: with the shorthands that it has, and arguments only where they are some."""
    given = request.attribution_args.get(name)
    arguments = {name: given if isinstance(given, dict) else {}}
    without = {each: None for each in _SHORTHANDS if not _has(name, each)}
    return request.model_copy(update={"attribution_args": arguments, **without}).of_method(name)


def _moved(item: ProblemItem, name: str, index: int) -> ProblemItem:
    """An error of one method's request, as a place in the comparison's."""
    place = item.pointer or ""
    if place == "/method":
        place = f"/methods/{index}"
    elif place.startswith("/attribution_args"):
        place = checks.pointer("attribution_args", name) + place.removeprefix("/attribution_args")
    return item.model_copy(update={"pointer": place})


# On its way


class JointProgress:
    """One method's progress as the comparison's: each method counts by how long it should take."""

    def __init__(
        self,
        report: Callable[[Progress], None],
        methods: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._methods = methods
        self._clock = clock
        self._began: float | None = None  # when the first method began to attribute
        self._fraction = 0.0
        self.expected: dict[str, float] = {}  # seconds of each method, once the texts are known

    def of_method(self, index: int) -> Callable[[Progress], None]:
        """What the method number `index` reports to."""
        return lambda progress: self._report(self._joined(index, progress))

    def _joined(self, index: int, progress: Progress) -> Progress:
        name, now = self._methods[index], self._clock()
        if progress.stage is not Stage.ATTRIBUTING:
            self._fraction = max(self._fraction, self._share(index, 0.0))
            return progress.model_copy(update={"method": name, "fraction": self._fraction})
        if self._began is None:
            self._began = now
        self._fraction = max(self._fraction, self._share(index, progress.fraction))
        left = None
        if self._fraction >= _TELLING:  # what was done tells more than what was expected
            left = (now - self._began) * (1 - self._fraction) / self._fraction
        elif total := sum(self.expected.values()):
            left = (1 - self._fraction) * total
        eta = None if left is None else round(left, 3)
        return progress.model_copy(update={"method": name, "fraction": self._fraction, "eta_seconds": eta})

    def _share(self, index: int, fraction: float) -> float:
        times = [self.expected.get(name, 1.0) for name in self._methods]
        return min(1.0, (sum(times[:index]) + fraction * times[index]) / (sum(times) or 1.0))


# After it


def json_view(outputs: Mapping[str, FeatureAttributionOutput], options: ViewOptions) -> bytes:
    """All methods' results and how well they agree, as JSON."""
    aggregated = {name: stored_form.aggregate(output, options) for name, output in outputs.items()}
    return orjson.dumps(
        {
            "comparison": [
                # A JSON object as bytes, with a name put in front.
                orjson.Fragment(b'{"method":' + orjson.dumps(name) + b"," + stored_form.json_view(output, options)[1:])
                for name, output in outputs.items()
            ],
            "agreement": [] if options.granular else list(_agreement(aggregated)),
        }
    )


def _agreement(outputs: Mapping[str, FeatureAttributionOutput]) -> Iterator[dict[str, Any]]:
    for one, other in combinations(outputs, 2):
        pairs = zip(outputs[one].sequence_attributions, outputs[other].sequence_attributions, strict=False)
        for index, (a, b) in enumerate(pairs):
            yield {"methods": [one, other], "sequence": index, **agreement(a, b)}


def agreement(a: FeatureAttributionSequenceOutput, b: FeatureAttributionSequenceOutput) -> dict[str, float | None]:
    """Mean rank correlations (Spearman's rho, Kendall's tau-b) and overlap of the largest scores of two methods.

    For each generated token, over the absolute scores of the tokens that both have a number for; a mean over the
    generated tokens where it is defined, None where it is nowhere (methods of other shapes, constant scores).
    """
    ours, theirs = _scores(a), _scores(b)
    found: dict[str, list[float]] = {"spearman": [], "kendall": [], "top_overlap": []}
    if ours is not None and theirs is not None and ours.shape == theirs.shape:
        for x, y in zip(ours.T, theirs.T, strict=True):
            both = np.isfinite(x) & np.isfinite(y)
            _compare(x[both], y[both], found)
    return {name: float(np.mean(values)) if values else None for name, values in found.items()} | {"k": TOP}


def _compare(x: NDArray[Any], y: NDArray[Any], found: dict[str, list[float]]) -> None:
    if len(x) < 2:  # noqa: PLR2004 - one token has no rank
        return
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        found["spearman"].append(float(spearmanr(x, y).statistic))
        found["kendall"].append(float(kendalltau(x, y).statistic))
    if len(x) > TOP:
        first, second = (set(np.argsort(-each, kind="stable")[:TOP].tolist()) for each in (x, y))
        found["top_overlap"].append(len(first & second) / TOP)


def _scores(sequence: FeatureAttributionSequenceOutput) -> NDArray[Any] | None:
    """Absolute scores, [attributed, generated], the source's above the target's; None where they are deeper."""
    sides = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
    if not sides or any(each.ndim != 2 for each in sides):  # noqa: PLR2004 - a matrix
        return None
    return np.concatenate([each.detach().float().abs().numpy() for each in sides])

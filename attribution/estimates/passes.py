"""Counts the forward and backward passes of an attribution by arithmetic, without a model or a clock.

Inseq's loop runs the model on the target up to each attributed position, one position after another (and an
encoder-decoder on the whole source each time). The passes at one position follow from the method's traits; a test
compares them with the passes of real jobs. The single pass runs the whole sequence once for all positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from attribution.catalogue import inseq_catalogue, masked_methods
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.next_token import scored_names
from attribution.catalogue.traits import MethodTraits
from attribution.inseq_loop.step_scores import has_own_logits, is_noisy
from attribution.single_pass.batch_sizes import usual_rows
from models import AttributionRequest

_PROBE_DIRECTIONS = 2  # in which each probe step runs the model


@dataclass(frozen=True)
class Shape:
    """A text in tokens. A decoder-only model's prompt is part of its target, and `source` is 0."""

    source: int
    first: int  # first target position that is attributed
    end: int  # one after the last
    spans: int = 0  # that are attributed in place of the positions
    features: int | None = None  # that are masked, where a method masks parts of the input

    @property
    def steps(self) -> int:
        """The number of things that are attributed."""
        return self.spans or self.end - self.first

    @property
    def ends(self) -> range:
        """The positions up to which Inseq's loop runs the model, one after another; those of spans are the last ones,
        since where they end is not known before.
        """
        return range(self.end - self.steps, self.end)

    @property
    def longest(self) -> int:
        """Tokens of its longer side."""
        return max(self.source, self.end)


@dataclass(frozen=True)
class Passes:
    """`calls` forwards of `rows` sequences of `length` tokens each, with `backwards` backward passes for each call."""

    calls: int
    rows: int
    length: int
    backwards: int = 0
    is_forward: bool = True  # False where only the layers run, each by itself

    @property
    def tokens(self) -> int:
        """Tokens of all rows of one call."""
        return self.rows * self.length


def of_text(request: AttributionRequest, shape: Shape, *, scores_at_once: bool = False) -> Iterator[Passes]:
    """The passes of Inseq's loop for one text, in any order; an upper bound for reagent, which may stop early.

    `scores_at_once`: the model's single pass is trusted to compute step scores.
    """
    method = inseq_catalogue.methods()[request.attribution_method]
    if method.is_final_step:
        yield from _final_passes(request, method, shape)
    own, forwards, once = _attributed_forwards(request), *_score_forwards(request, method, at_once=scores_at_once)
    if once and not (method.traits.reads_attention and request.corrections):  # whose own forward gives the scores
        yield Passes(1, 1, shape.source + shape.end - 1)
    for position in shape.ends:
        length = shape.source + position
        if not method.is_final_step:
            attributed = position if not shape.source else shape.source + position * request.attribute_target
            for each in _step(request, method, length, attributed):
                yield each
                if own:  # the function itself runs the model at each call
                    yield replace(each, calls=own * each.calls, backwards=0)
        if forwards:
            yield Passes(forwards, 1, length)


def of_single_pass(request: AttributionRequest, shape: Shape) -> Iterator[Passes]:
    """The passes of the single pass for one text, if all its rows fit into memory.

    One forward for each point or window, whatever the number of positions; one backward pass for each position; for
    step scores only the forwards that their functions run themselves.
    """
    method, length = inseq_catalogue.methods()[request.attribution_method], shape.source + shape.end - 1
    traits, arguments = method.traits, method.with_defaults(request.attribution_args)
    steps, rows = shape.steps, _rows(traits, arguments)
    if traits.redraws or (request.trace is not None and shape.spans):
        yield Passes(steps, rows, length, backwards=1)
    elif method.is_gradient:
        paths = (shape.source or shape.end - 1) if traits.paths_per_token else 1
        for calls, each in _divided(rows, arguments.get("internal_batch_size")):
            # A path of one token runs the positions behind it, where the ones before it can be shared.
            yield Passes(
                paths * calls, each, length if paths == 1 or shape.source else -(-length // 2), backwards=steps
            )
    elif traits.perturbed:
        attributed = length if not shape.source else shape.source + (shape.end - 1) * request.attribute_target
        yield Passes(1, _perturbations(traits, arguments, attributed), length)
    if not method.is_gradient or rows > 1:
        yield Passes(1, 1, length)  # of the unchanged text
    if inseq_catalogue.has_identity(request, method):
        yield Passes(1, 1, length)  # and of the baseline
    if _has_two_contrasts(request):
        yield Passes(1, 1, length)  # step scores with another contrast are computed in a separate run
    if extra := _own_score_forwards(request):
        for position in shape.ends:
            yield Passes(extra, 1, shape.source + position)


def of_masking(request: AttributionRequest, shape: Shape) -> Iterator[Passes]:
    """The passes of a method that masks parts of one text: the text itself, and the rows that the method asks.

    Where the parts are not known, they are as many as the tokens of the input.
    """
    length, features = shape.source + shape.end - 1, shape.features or shape.source or shape.first
    method = masked_methods.implementation(request.attribution_method)
    yield Passes(1, 1, length)
    asked = method.rows(features, **masked_methods.arguments_of(request))
    for calls, rows in _divided(min(asked, 2**features), usual_rows(length)):  # equal masks share a row
        yield Passes(calls, rows, length)
    if _has_two_contrasts(request):
        yield Passes(1, 1, length)
    if extra := _own_score_forwards(request):
        for position in range(shape.first, shape.end):
            yield Passes(extra, 1, shape.source + position)


def shares_scores(request: AttributionRequest) -> bool:
    """Whether a trusted single pass computes the step scores of all steps at once, beside Inseq's loop."""
    return _score_forwards(request, inseq_catalogue.methods()[request.attribution_method], at_once=True)[1]


def _final_passes(request: AttributionRequest, method: Method, shape: Shape) -> Iterator[Passes]:
    """The passes of a final-step method: one forward, and for value zeroing its layers on pairs of tokens.

    A pair is a zeroed token and a position, and there is one more of each position alone. Where a model's layers cannot
    run by themselves, there is a forward for each token instead.
    """
    target, length = shape.end - 1, shape.source + shape.end - (0 if shape.source else 1)
    if not method.traits.zeroes_positions:
        yield Passes(1, 1, length)
    elif not request.corrections:
        yield Passes(1 + target + 2 * shape.source, 1, length)
    else:
        yield Passes(1, 1, length)
        pairs = target * (target + 3) // 2 + (shape.source + 1) * (shape.source + target)
        yield Passes(1, 1, pairs if shape.source else target * (target + 3) // 2, is_forward=False)


def _step(request: AttributionRequest, method: Method, length: int, attributed: int) -> Iterator[Passes]:
    """The passes of a method at one position of the target."""
    traits, arguments = method.traits, method.with_defaults(request.attribution_args)
    if traits.extra_forwards:
        yield Passes(traits.extra_forwards, 1, length)
    if method.is_gradient:
        paths = attributed if traits.paths_per_token else 1
        for calls, rows in _divided(_rows(traits, arguments), arguments.get("internal_batch_size")):
            yield Passes(paths * calls, rows, length, backwards=1)
    elif traits.perturbed:
        perturbed = _perturbations(traits, arguments, attributed)
        most = arguments["perturbations_per_eval"]
        if inseq_catalogue.samples_share_forwards(request):
            most = usual_rows(length)
        for calls, rows in _divided(perturbed, most):
            yield Passes(calls, rows, length)
    elif traits.probes:
        yield Passes(_PROBE_DIRECTIONS * int(arguments["max_probe_steps"]), int(arguments["num_probes"]), length)
    if inseq_catalogue.has_identity(request, method):
        yield Passes(2, 1, length)


def _rows(traits: MethodTraits, arguments: dict[str, Any]) -> int:
    """Rows that a gradient method runs at one position."""
    return traits.rows if isinstance(traits.rows, int) else int(arguments[traits.rows])


def _perturbations(traits: MethodTraits, arguments: dict[str, Any], attributed: int) -> int:
    """Perturbed copies of the text at one position, of which `attributed` tokens are attributed."""
    if traits.perturbed is None:
        return 0
    return _windows(arguments, attributed) if traits.perturbed == "windows" else int(arguments[traits.perturbed])


def _divided(rows: int, most: int | None) -> Iterator[tuple[int, int]]:
    """Divide rows into calls of at most `most` rows: pairs of (calls, rows), the full ones first."""
    most = rows if most is None else min(most, rows)
    if calls := rows // most if most else 0:
        yield calls, most
    if rest := rows % most if most else 0:
        yield 1, rest


def _windows(arguments: dict[str, object], attributed: int) -> int:
    """The number of occlusion's windows over the attributed tokens."""

    def of(name: str) -> int:
        value = arguments.get(name)
        while isinstance(value, tuple | list) and value:
            value = value[0]
        return value if isinstance(value, int) else 1

    return 1 + ceil(max(0, attributed - of("sliding_window_shapes")) / of("strides"))


def _score_forwards(request: AttributionRequest, method: Method, *, at_once: bool) -> tuple[int, bool]:
    """Forwards for the step scores of one position, and whether one forward of the whole text is run besides."""
    names = scored_names(request)
    if not names:
        return 0, False
    apart, noisy = method.is_final_step or _has_two_contrasts(request), is_noisy(names)
    own = has_own_logits(request, method) and not apart
    if not request.corrections or (not own and noisy and not (at_once and apart)):
        return 1 + _extra_forwards(request.step_scores, request.step_scores_args), False  # as in Inseq
    once = at_once and not own and method.has_scores
    return (0 if own or once else 1) + _own_score_forwards(request), once


def _has_two_contrasts(request: AttributionRequest) -> bool:
    """Whether the step scores have another contrast than the attributed function, and so need a separate run."""
    attributed, scored = (
        [
            each.get("contrast_targets") or each.get("contrast_ids"),
            each.get("contrast_targets_alignments"),
        ]
        for each in (request.attributed_fn_args, request.step_scores_args)
    )
    return request.corrections and bool(attributed[0] and scored[0]) and attributed != scored


def _own_score_forwards(request: AttributionRequest) -> int:
    """Forwards that step score functions run themselves; consecutive contrastive functions share one."""
    total, before = 0, ""
    for name in request.step_scores:
        if inseq_catalogue.step_functions()[name].is_contrastive:
            total += before != "contrast"
            before = "contrast"
        elif is_noisy([name]):
            total += 1 + _extra_forwards([name], request.step_scores_args)
            before = name
    return total


def _attributed_forwards(request: AttributionRequest) -> int:
    """Forwards that the attributed function runs itself.

    A contrastive function uses the attributed forward's logits, unless it must use the contrast's own inputs.
    """
    name, arguments = request.attributed_fn, request.attributed_fn_args
    if name is None:
        return 0
    own_inputs = arguments.get("contrast_force_inputs") or arguments.get("contrast_sources")
    if inseq_catalogue.step_functions()[name].is_contrastive and not own_inputs:
        return 0
    return _extra_forwards([name], arguments)


def _extra_forwards(names: list[str], arguments: dict[str, object]) -> int:
    functions = inseq_catalogue.step_functions()
    total = 0
    for name in names:
        if functions[name].is_contrastive:
            total += 1
        elif count := functions[name].traits.forwards:
            given = arguments.get(count, functions[name].parameters[count].default)
            total += given if isinstance(given, int) else 0
    return total

"""`n_steps: "auto"`: a path's points are doubled until the scores of every token add up (completeness).

The rule that places the points stays the request's, so that the result is the one of a request with the number reached.
"""

from __future__ import annotations

from collections.abc import Iterator

from attribution.catalogue.inseq_catalogue import Method, has_identity
from models import Arguments, AttributionRequest, ProblemItem

AUTO = "auto"
# The first number of points, and those that an estimate counts; Inseq's default, 50, is among them.
FIRST = 25
USUAL = (FIRST, 50, 100)
# Relative to the size of a token's scores, as `completeness.Step.relative`; a result with more carries a warning.
TOLERANCE = 0.05
TOLERANCE_ALONE = ProblemItem(
    pointer="/completeness_tolerance", detail='completeness_tolerance is for n_steps "auto"; leave it out.'
)
# Inseq's default number of points is one forward, and more are run in pieces of it.
_ROWS = 50


def is_asked(arguments: Arguments) -> bool:
    """Whether these `attribution_args` leave the number of points to us."""
    return arguments.get("n_steps") == AUTO


def attempts(most: int) -> Iterator[int]:
    """The numbers of points to try, none above `most`."""
    n_steps = min(FIRST, most)
    while n_steps <= most:
        yield n_steps
        n_steps *= 2


def with_steps(request: AttributionRequest, method: Method, n_steps: int) -> AttributionRequest:
    """The request with this number of points in place of "auto"."""
    arguments = {**request.attribution_args, "n_steps": n_steps}
    if "internal_batch_size" in method.parameters and n_steps > _ROWS:
        arguments.setdefault("internal_batch_size", _ROWS)
    return request.model_copy(update={"attribution_args": arguments, "completeness_tolerance": None})


def usual(request: AttributionRequest, method: Method) -> Iterator[AttributionRequest]:
    """The requests of the attempts that an estimate counts."""
    return (with_steps(request, method, n_steps) for n_steps in USUAL)


def refusals(request: AttributionRequest, method: Method, arguments: Arguments) -> Iterator[ProblemItem]:
    """Yield an error where "auto" is asked of scores that need not add up, or a tolerance without it."""
    if not is_asked(arguments):
        if request.completeness_tolerance is not None:
            yield TOLERANCE_ALONE
    elif "n_steps" in method.parameters and not has_identity(request, method, arguments):
        yield ProblemItem(
            pointer="/n_steps",
            detail='n_steps "auto" needs scores that sum to f(input) - f(baseline), and '
            f"{method.name} does not promise that{_with_what(method)}. Send a number.",
        )


def _with_what(method: Method) -> str:
    if method.traits.completeness_advice is None:
        return ""
    return " with these arguments (multiply_by_inputs, target_layer, or a function with dropout)"

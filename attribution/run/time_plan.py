"""The expected time of a request's stages, from the model's measured rates: what its progress and ETA are made of."""

from __future__ import annotations

from collections.abc import Sequence

from attribution.catalogue.method_requests import requests_of_methods
from attribution.estimates.estimator import Estimator
from attribution.estimates.passes import Shape
from attribution.estimates.token_counts import CountedInput
from attribution.model_cache.loading import LoadedModel
from attribution.run.request_progress import RequestProgress, Work
from models import AttributionRequest, Stage


class TimePlan:
    """Tells the progress what to expect, as soon as it can be known: first with the most tokens that may be generated,
    then with those that were.
    """

    def __init__(
        self, request: AttributionRequest, loaded: LoadedModel, estimator: Estimator, progress: RequestProgress
    ) -> None:
        self._requests = requests_of_methods(request)
        self._loaded = loaded
        self._estimator = estimator
        self._progress = progress
        self._seconds: dict[str, float] = {}  # of each method's attribution, once the texts are known

    @property
    def is_measured(self) -> bool:
        """Whether the model's rates are known."""
        return self._estimator.is_measured(self._loaded)

    def measure(self) -> None:
        """Measure the model's rates, if no job has."""
        self._estimator.measure(self._loaded)

    def before_generating(self, inputs: Sequence[CountedInput]) -> list[float]:
        """Expect the generation of these inputs' targets, and their attribution.

        Returns how many times as long as a token's forward each prompt's takes.
        """
        generating = self._estimator.generating_seconds(self._loaded, inputs)
        plan: dict[Work, float] = {(Stage.GENERATING, None): generating}
        self._progress.expect(plan | self._of_methods([each.shape for each in inputs]))
        return [self._estimator.prompt_cost(self._loaded, each) for each in inputs]

    def generated(self, inputs: Sequence[CountedInput], took: float) -> None:
        """Learn from the time of a generation of so many tokens (`new`)."""
        self._estimator.learn_generating(self._loaded, inputs, took)

    def before_attributing(self, name: str, shapes: Sequence[Shape]) -> float:
        """The expected seconds of one method's attribution. The first call plans all of them, on these same texts.

        Raises `MemoryError` if they need more than there is.
        """
        if not self._seconds:
            plan = self._of_methods(shapes)
            self._seconds = {str(method): plan[stage, method] for stage, method in plan if stage is Stage.ATTRIBUTING}
            for each in self._requests:
                self._estimator.check_memory(each, self._loaded, shapes)
            self._progress.expect(plan)
        return self._seconds[name]

    def _of_methods(self, shapes: Sequence[Shape]) -> dict[Work, float]:
        """The seconds of each method's probes and attribution, in order."""
        plan: dict[Work, float] = {}
        for each in self._estimator.expected_stages(self._requests, self._loaded, shapes):
            plan[Stage.CHECKING, each.method] = each.probing
            plan[Stage.ATTRIBUTING, each.method] = each.attributing
        return plan

"""Verify, then trust: whether a method runs by the single pass or by Inseq's loop.

The single pass assumes of a model only that a position never depends on later ones. That is tested for each model by a
short probe instead of keeping a list of families. A verdict holds for a loaded model (so for its revision, device and
dtype), a method, and a length: where the configuration names something that changes behind a certain length, probes
stand to it as the texts do (see `probe_shapes`), or Inseq's loop runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from inseq.data import FeatureAttributionOutput

from attribution.catalogue import inseq_catalogue, masked_methods, next_token
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.length_changes import length_changes, rescaling_within
from attribution.catalogue.single_pass_eligibility import obstacle
from attribution.estimates import probes
from attribution.estimates.passes import Shape
from attribution.model_cache.loading import LoadedModel
from attribution.run.engine_probe import Verdict, largest_difference, probe, tolerance
from attribution.run.method_progress import MethodProgress
from attribution.single_pass.text_task import ProgressCallback
from models import AttributionRequest, Engine
from problems import UnsupportedByModel

# Not the process's random generators: methods draw from them.
_CHANCE = random.SystemRandom()


class EngineChoice:
    """Chooses the engine of each method of one job, and remembers the reasons."""

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        *,
        progress: MethodProgress,
        on_progress: ProgressCallback,
        recheck_share: float = 0.0,
    ) -> None:
        """`progress` shows that a probe runs. `on_progress` is called within probes and may raise. `recheck_share`: the
        share (0 to 1) of texts that both engines attribute.
        """
        self._request = request
        self._loaded = loaded
        self._progress = progress
        self._on_progress = on_progress
        self._recheck_share = recheck_share
        self._decided: dict[str, Verdict] = {}
        self._rechecked_difference: float | None = None  # of the last text that ran by both engines
        self.shapes: Sequence[Shape] = ()  # of the job's texts, once they are known
        self.probing_seconds = 0.0  # of probes, which run once for a model and are not the job's own time

    def takes_single_pass(self, method: Method) -> bool:
        """Whether to use the single pass, after a probe of the model if there was none.

        Raises `UnsupportedByModel` if the request requires the single pass and it is not trusted.
        """
        if method.name not in self._decided:
            self._decided[method.name] = self._decide(method)
        return self._decided[method.name].is_trusted

    def scores_at_once(self, names: Sequence[str]) -> bool:
        """Whether one forward over a text may compute these step scores of all its steps (by the single pass of
        `dummy`), after a probe of the model if there was none.
        """
        dummy = inseq_catalogue.step_scores_only()
        if not next_token.OWN.issuperset(names) or self._request.engine != Engine.INSEQ:
            return self.takes_single_pass(dummy)
        # Candidates are beside the scores that the request wants from Inseq's loop.
        if next_token.NAME not in self._decided:
            self._decided[next_token.NAME] = self._verdict(dummy)
        return self._decided[next_token.NAME].is_trusted

    def require_causal(self) -> None:
        """Have the model probed, if there was no probe: masking takes the values of all steps from one forward.

        Raises `UnsupportedByModel` where a position of the model depends on later ones.
        """
        verdict = self._verdict(inseq_catalogue.step_scores_only())
        if not verdict.is_trusted:
            raise UnsupportedByModel(
                f"{self._request.attribution_method} needs the values of all tokens from one forward, and this model "
                f"does not give them: {_why_not(verdict)} Use a method that Inseq's loop computes."
            )

    def give_up_scores_at_once(self, reason: str) -> None:
        """Record that one forward over a text failed to compute its step scores: each step has its own from now on."""
        self._decided[next_token.NAME] = Verdict(0, reason=reason)
        self.give_up(inseq_catalogue.step_scores_only(), reason)

    def give_up(self, method: Method, reason: str) -> None:
        """Record that the single pass failed for a text: Inseq's loop runs this method from now on.

        Raises `UnsupportedByModel` if the request requires the single pass.
        """
        self._decided[method.name] = self._refused_if_required(method, Verdict(0, reason=reason))

    def is_to_be_rechecked(self, method: Method) -> bool:
        """Whether to run Inseq's loop too on a text whose attribution has just ended; drawn at random."""
        return self._engine(method) is Engine.SINGLE_PASS and _CHANCE.random() < self._recheck_share

    def is_confirmed(self, method: Method, ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput) -> bool:
        """Whether Inseq's loop (`theirs`) agrees with the single pass; if not, this model's is not trusted again."""
        self._rechecked_difference = difference = largest_difference(ours, theirs)
        limit = max(tolerance(self._loaded), self._decided[method.name].tolerance)
        if difference <= limit:
            return True
        longest = max((each.longest for each in self.shapes), default=0)
        verdict = Verdict(longest, difference, limit, "A job that was checked again came out otherwise.")
        for key in self._loaded.verdicts:
            if key[0] == method.name:
                self._loaded.verdicts[key] = verdict
        self._decided[method.name] = verdict
        return False

    def describe(self, method: Method) -> dict[str, Any]:
        """For a result's `info`: the engine that ran, and the probe or the reason behind it."""
        found: dict[str, Any] = {"engine": self._engine(method)}
        verdict = self._decided.get(method.name)
        check = {} if verdict is None else verdict.describe()
        if self._rechecked_difference is not None:
            check["rechecked_difference"] = self._rechecked_difference
        if check:
            found["engine_check"] = check
        return found

    def _engine(self, method: Method) -> Engine:
        if masked_methods.is_masked(self._request):
            return Engine.MASKING
        verdict = self._decided.get(method.name)
        return Engine.SINGLE_PASS if verdict is not None and verdict.is_trusted else Engine.INSEQ

    def _decide(self, method: Method) -> Verdict:
        if self._request.engine == Engine.INSEQ:
            return Verdict(0, reason="Asked for.")
        return self._refused_if_required(method, self._verdict(method))

    def _refused_if_required(self, method: Method, verdict: Verdict) -> Verdict:
        required = self._request.engine == Engine.SINGLE_PASS and method.name == self._request.attribution_method
        if required and not verdict.is_trusted:
            raise UnsupportedByModel(f"engine single_pass cannot be had here: {_why_not(verdict)} Use auto or inseq.")
        return verdict

    def _verdict(self, method: Method) -> Verdict:
        if reason := obstacle(self._request, method):
            return Verdict(0, reason=reason)
        changes = length_changes(self._loaded.network.config)
        if change := rescaling_within(changes, self.shapes):
            return Verdict(
                0, reason=f"The text has steps behind {change.tokens} tokens, where the model rescales all positions."
            )
        verdicts = []
        for shape in probes.shapes_for(self._loaded, changes, self.shapes):
            verdict = self._verdict_at(method, shape)
            if not verdict.is_trusted:
                return verdict
            verdicts.append(verdict)
        worst = max(verdicts, key=lambda each: each.difference or 0.0)
        return replace(worst, length=max(each.length for each in verdicts))

    def _verdict_at(self, method: Method, shape: Shape) -> Verdict:
        key = probes.verdict_key(self._request, method, shape)
        if key not in self._loaded.verdicts:
            if not probes.is_worth(shape, self.shapes):
                length, steps = shape.longest, sum(each.steps for each in self.shapes)
                return Verdict(
                    0,
                    reason=f"This model's attention or positions change near {length} tokens, and a probe of that "
                    f"length would take longer than Inseq's loop for {steps} steps.",
                )
            began = perf_counter()
            with self._progress.checking(probes.forwards_of(self._request, self._loaded, method, shape)):
                self._loaded.verdicts[key] = probe(
                    self._request,
                    self._loaded,
                    method,
                    shape=shape,
                    progress=self._progress,
                    on_progress=self._on_progress,
                )
            self.probing_seconds += perf_counter() - began
        verdict: Verdict = self._loaded.verdicts[key]
        return verdict

    def maps_of_other_positions(self) -> str | None:
        """A warning where a method that runs the model once, over the whole text, sees other positions than the model
        had when it predicted some of the tokens; None if it does not.
        """
        changes = length_changes(self._loaded.network.config)
        if (change := rescaling_within(changes, self.shapes)) is None:
            return None
        return (
            f"Behind {change.tokens} tokens this model rescales all positions. The attention of all tokens is that of "
            "the whole text, also where the model predicted a token from a shorter one."
        )


def _why_not(verdict: Verdict) -> str:
    difference = "" if verdict.difference is None else f" (off by {verdict.difference:.2g} of the largest score)"
    return f"{(verdict.reason or '').removesuffix('.')}{difference}."

"""One method on one text of a request, by an engine that the caller names, with the corrections that both need.

Knows one text and one method at a time; the texts of a request, the choice of the engine and cancellation belong to
`attribution.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionStepOutput
from inseq.models import HuggingfaceModel
from transformers import PreTrainedModel

from attribution.catalogue import inseq_catalogue
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.next_token import scored_names
from attribution.corrections import positions_and_padding
from attribution.corrections.registry import Ledger
from attribution.inseq_loop.engine_calls import Attributed, EngineCall, FinishedSteps
from attribution.inseq_loop.partial_output import RunningText, output_of_steps
from attribution.inseq_loop.text_setup import MethodOnText, rename_step_scores, set_up
from attribution.model_cache.loading import LoadedModel
from attribution.single_pass import span_output
from attribution.single_pass.text_task import ProgressCallback
from attribution.text.encoding import Text
from attribution.text.segments import Features
from models import Arguments, AttributionRequest
from problems import InputRejected


class TextProgress(Protocol):
    """What a running text reports to."""

    def steps_done(self, steps: int) -> None:
        """So many steps of the text are done."""

    def preparing(self) -> AbstractContextManager[None]:
        """Entered while a method does one-time work on the model."""


class TextAttribution:
    """One request's method on one text.

    Every run gets fresh arguments: Inseq's own defaults are shared by all callers.
    """

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        ledger: Ledger,
        text: Text,
        contrast: dict[str, Arguments],
        *,
        progress: TextProgress,
        on_progress: ProgressCallback,
        on_step: Callable[[FeatureAttributionStepOutput], None] = lambda _: None,
        is_signed: bool = False,
        features: Features | None = None,
    ) -> None:
        """`features`: what is masked, where the method runs by masking.

        `on_progress` is called before each piece of a single pass with the fraction that is done; it may raise.

        `on_step` is called with each finished step, in the thread that runs it. `is_signed`: see `MethodOnText`.
        """
        self._request = request
        self._loaded = loaded
        self._ledger = ledger
        self._text = text
        self._contrast = contrast
        self._progress = progress
        self._on_progress = on_progress
        self._on_step = on_step
        self._is_signed = is_signed
        self._features = features
        self._running: RunningText | None = None
        self._spans_done: list[FeatureAttributionOutput] = []  # of `runs_by_span`
        self.method: Method = inseq_catalogue.methods()[request.attribution_method]

    @property
    def request(self) -> AttributionRequest:
        return self._request

    @property
    def network(self) -> PreTrainedModel:
        """The Transformers model."""
        return self._loaded.network

    def runs(self) -> list[MethodOnText]:
        """The runs that make up this attribution: the method with its step scores, or two runs, where Inseq would fail
        or compute wrong scores in one. The outputs of the runs go to `joined`.
        """
        method, text, contrast, names = self.method, self._text, self._contrast, scored_names(self._request)
        if not names or not self._needs_second_run():
            return [MethodOnText(method, text, names, contrast, is_signed=self._is_signed, features=self._features)]
        dummy = inseq_catalogue.step_scores_only()
        return [
            MethodOnText(method, text, [], contrast | {"step_scores_args": {}}, features=self._features),
            MethodOnText(dummy, text, names, contrast | {"attributed_fn_args": {}}, is_for_scores_only=True),
        ]

    def runs_by_span(self) -> list[MethodOnText]:
        """The runs that make up the attribution of spans where no engine has one for all: each span is the last step of
        a text that ends with it. The outputs go to `span_output.of_single_steps`.
        """
        return [
            MethodOnText(
                self.method,
                replace(self._text, first=span.end - 1, end=span.end, spans=()),
                [],
                self._contrast | {"step_scores_args": {}},
                summed=range(span.start, span.end),
                is_signed=self._is_signed,
            )
            for span in self._text.spans
        ]

    def run_of_scores(self) -> MethodOnText:
        """The run for the step scores of all tokens of the spans."""
        return MethodOnText(
            inseq_catalogue.step_scores_only(),
            replace(self._text, spans=()),
            scored_names(self._request),
            self._contrast | {"attributed_fn_args": {}},
            is_for_scores_only=True,
        )

    @property
    def text(self) -> Text:
        return self._text

    @property
    def scored(self) -> list[str]:
        """The step scores to compute, our own included."""
        return scored_names(self._request)

    @property
    def model(self) -> HuggingfaceModel:
        """Inseq's model."""
        model: HuggingfaceModel = self._loaded.model
        return model

    def run(self, work: MethodOnText, engine: EngineCall) -> Attributed:
        """One of the `runs`, by this engine.

        Raises `UnsupportedByModel` where the engine cannot do this text, `InputRejected` where the request's arguments
        make Inseq fail, and whatever Inseq and the model raise.
        """
        try:
            with set_up(self._request, self._loaded, self._ledger, work, self._progress.preparing) as setup:
                steps, names = FinishedSteps(self._on_step, self._step_done), setup.step_score_names
                if not work.is_for_scores_only and not work.method.is_final_step and work.summed is None:
                    pad_token = self._loaded.model.pad_token
                    self._running = RunningText(work.text, steps, names, pad_token, work.method.name)
                output, identity = engine(setup, steps, self._on_progress)
                if setup.tail and not work.text.spans:
                    positions_and_padding.restore_tail(output, setup.tail)
                positions_and_padding.name_tokens(output)
        except (AssertionError, ValueError, TypeError, IndexError) as error:
            if not self._request.attribution_args:
                raise
            reason = str(error).strip() or "no further explanation"
            raise InputRejected(
                f"{self.method.name} fails with these attribution_args: {type(error).__name__}: {reason}"
            ) from error
        rename_step_scores(output, names)
        if work.summed is not None:
            self._spans_done.append(output)
        return output, identity

    def partial(self) -> FeatureAttributionOutput | None:
        """The finished steps as an output of their own, from any thread; None before the first step, and for methods
        with one step.
        """
        if done := list(self._spans_done):
            return span_output.of_single_steps(done, self._text, self.model, clean=self._request.clean_special_chars)
        return None if self._running is None else output_of_steps(self._request, self.model, self._running)

    def _needs_second_run(self) -> bool:
        if self.method.is_final_step:
            # Candidates alone are nothing that Inseq would fail at.
            return not self._request.step_scores or self._ledger.apply(positions_and_padding.FINAL_STEP_SCORES)
        attributed, scored = (
            {name: self._contrast[each].get(name) for name in ("contrast_targets", "contrast_targets_alignments")}
            for each in ("attributed_fn_args", "step_scores_args")
        )
        both = attributed["contrast_targets"] and scored["contrast_targets"]
        return bool(both) and attributed != scored and self._ledger.apply(positions_and_padding.TWO_CONTRASTS)

    def _step_done(self, steps: int) -> None:
        # A dropout function may have left the model in train mode; the next step must not run in it.
        if self._loaded.model.training:
            self._loaded.model.eval()
        self._progress.steps_done(len(self._spans_done) + steps)


def joined(attributed: list[Attributed]) -> Attributed:
    """The outputs of `TextAttribution.runs` as one: the first one's scores, and the step scores of the others."""
    (output, identity), *scored = attributed
    for scores, _ in scored:
        positions_and_padding.merge_step_scores(output, scores)
    return output, identity

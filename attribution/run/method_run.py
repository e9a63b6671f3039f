"""One method of a request on one loaded model -> an Inseq `FeatureAttributionOutput`, with progress and cancellation.

The generated ids themselves are attributed, one text at a time, because a batch gives other numbers. Knows nothing of
jobs, threads or storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from inseq.data import FeatureAttributionOutput, merge_attributions
from inseq.models import HuggingfaceModel

from attribution.cancel_points import cancel_points
from attribution.catalogue import checks, config_checks, inseq_catalogue, refinement
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.registry import Ledger
from attribution.estimates.passes import Shape
from attribution.inseq_loop import completeness
from attribution.inseq_loop.engine_calls import DESCRIBED, MASKING, METHOD_WARNINGS, Attributed
from attribution.inseq_loop.text_attribution import TextAttribution
from attribution.isolation import isolated
from attribution.model_cache.loading import LoadedModel
from attribution.run import result_checks, span_results, text_run, token_notes
from attribution.run.candidate_notes import CandidateNotes, SequenceCandidates, shortened
from attribution.run.engine_choice import EngineChoice
from attribution.run.generated_targets import GeneratedTargets
from attribution.run.method_progress import MethodProgress, Unit
from attribution.run.prepared_text import PreparedText, TextReader
from attribution.run.record import RunRecord
from attribution.run.refinement_search import RefinementSearch
from attribution.run.request_progress import RequestProgress
from attribution.run.time_plan import TimePlan
from attribution.run.token_notes import SideNotes
from attribution.text import encoding, languages
from attribution.text.encoding import Text
from attribution.text.sandbox import TextSandbox
from models import Arguments, AttributionRequest
from problems import Cancelled, UnsupportedByModel


@dataclass(frozen=True)
class _Snapshot:
    """The texts that are done, and the one being attributed; replaced as a whole, because other threads read it."""

    steps_total: int = 0
    outputs: tuple[FeatureAttributionOutput, ...] = ()
    current: tuple[TextAttribution, PreparedText] | None = None
    whole: FeatureAttributionOutput | None = None  # its last whole attempt, where it is attempted several times


class Runner:
    """Runs one method of one request; made for it and thrown away after it."""

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        *,
        progress: RequestProgress,
        plan: TimePlan,
        should_cancel: Callable[[], bool],
        max_input_tokens: int,
        most_n_steps: int,
        sandbox: TextSandbox,
        targets: GeneratedTargets | None = None,
        recheck_share: float = 0.0,
        warnings: Sequence[str] = (),
        candidates: Sequence[SequenceCandidates | None] = (),
    ) -> None:
        """`progress` and `plan` are the whole request's, `targets` are shared by the methods of a comparison.
        `recheck_share`: see `EngineChoice`. `warnings` go into the record. `candidates`: of each sequence, where an
        earlier method computed them.
        """
        self._request = request
        self._loaded = loaded
        self._model: HuggingfaceModel = loaded.model
        self._method: Method = inseq_catalogue.methods()[request.attribution_method]
        self._is_refined = refinement.is_asked(request.attribution_args)
        self._most_n_steps = most_n_steps
        self._should_cancel = should_cancel
        self._plan = plan
        self._snapshot = _Snapshot()
        unit = Unit.FORWARD if self._method.is_final_step else Unit.STEP
        self._progress = MethodProgress(progress, self._method.name, unit)
        self._choice = EngineChoice(
            self._request_with(refinement.FIRST) if self._is_refined else request,
            loaded,
            progress=self._progress,
            on_progress=lambda *_: self._check_cancelled(),
            recheck_share=recheck_share,
        )
        self._ledger = Ledger(enabled=request.corrections)
        self._warnings = [*loaded.warnings, *warnings]
        self._generation_args: list[Arguments] = []  # for each text that was generated
        self._convergence: list[dict[str, list[float]]] = []  # for each sequence, see `completeness.describe`
        self._spans: list[dict[str, Any]] = []  # for each sequence, see `span_results.describe`
        self._masking: list[dict[str, Any]] = []  # for each sequence, see `MaskedAttribution.describe`
        self._segments: list[list[dict[str, Any]]] = []  # for each text, see `InputParts.describe`
        self._n_steps: list[int] = []  # that each sequence reached, where the request leaves them to us
        self._reader = TextReader(
            request,
            loaded,
            targets or GeneratedTargets(),
            self._ledger,
            self._warnings,
            self._progress,
            plan,
            draws_random=checks.draws_random(request),
            max_input_tokens=max_input_tokens,
            sandbox=sandbox,
        )
        self._sandbox = sandbox
        self.notes: list[SideNotes] = []  # for each sequence that is done
        self._candidates = CandidateNotes(self._model, request.candidates, clean=request.clean_special_chars)
        self._known_candidates = candidates
        # Seconds of the attribution: expected, set before it, and taken, without probes, set after it.
        self.expected = self.took = 0.0

    def run(self) -> FeatureAttributionOutput:
        """The attribution of all texts, merged as Inseq merges batches.

        Raises a `JobError` that says why it cannot be done, `Cancelled` within one large module of a forward or
        backward (see `cancel_points`) of `should_cancel` turning true, and whatever Inseq and the model raise.
        """
        refusals = list(
            checks.kind_refusals(self._request, self._method, is_encoder_decoder=bool(self._model.is_encoder_decoder))
        )
        refusals += config_checks.config_refusals(self._method, self._loaded.network.config)
        refusals += config_checks.dropout_refusals(self._request, self._loaded.network.config)
        if refusals:
            raise UnsupportedByModel(refusals[0].detail, errors=refusals)
        if self._request.attribute_target and not self._model.is_encoder_decoder:
            self._warnings.append("attribute_target has no effect: a decoder-only model's prefix is always attributed.")
        encoding.check_texts(self._request, self._sandbox)
        with ExitStack() as stack:
            stack.enter_context(isolated(self._model, self._should_cancel))
            stack.enter_context(self._watched_forwards())
            fix = self._loaded.embeddings_fix
            applied = [self._ledger.apply(each) for each in fix.corrections]
            if all(applied):
                stack.enter_context(fix.applied(self._model))
            spoken = stack.enter_context(languages.spoken(self._model, self._request.languages))
            if not self._plan.is_measured:
                self._progress.measuring()
                self._plan.measure()
            texts = self._reader.read_all(spoken)
            self._segments = [each.parts.describe(is_source=bool(self._model.is_encoder_decoder)) for each in texts]
            self._generation_args = [each.generation_args for each in texts if each.generation_args is not None]
            self._attribute_all(texts)
        return merge_attributions(list(self._snapshot.outputs))

    def partial(self) -> tuple[FeatureAttributionOutput, list[SideNotes]] | None:
        """The scores of the generated tokens that are done, and the notes of their tokens; None where there are none.

        Called from any thread, also after the run failed.
        """
        snapshot = self._snapshot
        outputs, notes = list(snapshot.outputs), self.notes[: len(snapshot.outputs)]
        if snapshot.current is not None:
            attribution, prepared = snapshot.current
            current = attribution.partial() if snapshot.whole is None else snapshot.whole
            if current is not None:
                current.info |= prepared.info
                outputs.append(current)
                notes.append(token_notes.of_partial_result(prepared.notes, current.sequence_attributions[0]))
        if not outputs:
            return None
        output = merge_attributions(outputs)
        done = sum(each.attr_pos_end - each.attr_pos_start for each in output.sequence_attributions)
        output.info["partial"] = {"steps_done": done, "steps_total": snapshot.steps_total}
        return output, notes

    def candidates(self, output: FeatureAttributionOutput) -> list[SequenceCandidates | None]:
        """The next-token candidates of each sequence of a whole or partial output of this run; from any thread."""
        sequences = output.sequence_attributions
        if self._known_candidates:
            return shortened(self._known_candidates, [each.attr_pos_end - each.attr_pos_start for each in sequences])
        return [self._candidates.of_sequence(each) for each in sequences]

    @property
    def record(self) -> RunRecord:
        """How the method ran so far; from any thread."""
        return RunRecord(
            request=self._request,
            engine=self._choice.describe(self._method),
            corrections=self._ledger.applied,
            corrections_withheld=self._ledger.withheld,
            warnings=list(self._warnings),
            generation_args=self._generation_args,
            convergence=list(self._convergence),
            n_steps=list(self._n_steps),
            spans=list(self._spans),
            masking=list(self._masking),
            segments=self._segments if self._request.segments is not None else [],
        )

    # Cancellation

    @contextmanager
    def _watched_forwards(self) -> Iterator[None]:
        def before_forward(*_: Any) -> None:
            self._check_cancelled()
            self._progress.forward_begins()

        handle = self._loaded.network.register_forward_pre_hook(before_forward)
        try:
            with cancel_points(self._loaded.network, self._check_cancelled):
                yield
        finally:
            handle.remove()

    def _check_cancelled(self) -> None:
        if self._should_cancel():
            raise Cancelled

    def _on_progress(self, done: float, spent: float | None = None, /) -> None:
        """Called within the single pass, before each of its pieces: see `ProgressCallback`."""
        self._check_cancelled()
        self._progress.part_done(done, spent)

    # Attribution

    def _attribute_all(self, texts: list[PreparedText]) -> None:
        every = [(one, each) for each in texts for one in each.texts]
        self._choice.shapes = shapes = [self._shape(*each) for each in every]
        if self._method.is_final_step and (warning := self._choice.maps_of_other_positions()):
            self._warnings.append(warning)
        self._progress.begin_attributing(sum(self._units(text) for text, _ in every))
        self.expected = self._plan.before_attributing(self._method.name, shapes)
        began = time.monotonic()
        text_run.choose_engines(self._request, self._method, self._choice)
        self._snapshot = _Snapshot(sum(each.text.steps for each in texts))
        for each in texts:
            output = self._attribute(each)
            self._snapshot = replace(
                self._snapshot, outputs=(*self._snapshot.outputs, output), current=None, whole=None
            )
        # Of a search, whose length nobody knows before, the rates learn nothing.
        self.took = 0.0 if self._is_refined else time.monotonic() - began - self._choice.probing_seconds

    def _attribute(self, prepared: PreparedText) -> FeatureAttributionOutput:
        self._progress.begin_text(sum(map(self._units, prepared.texts)))
        output = (
            self._refined(prepared) if self._is_refined else self._measured(*self._attempt(self._request, prepared))
        )
        (sequence,) = output.sequence_attributions
        self._warnings += result_checks.warnings_of_gaps(output, self._method, self._model, prepared.text.first)
        told = output.info.pop(METHOD_WARNINGS, [])
        self._warnings += [each for each in told if each not in self._warnings]
        self._masking += [output.info.pop(MASKING)] if MASKING in output.info else []
        self.notes.append(token_notes.of_result(self._model, prepared.text, prepared.notes, sequence))
        output.info |= prepared.info
        if prepared.text.spans:
            self._spans.append(output.info.pop(DESCRIBED))
        return output

    def _attempt(self, request: AttributionRequest, prepared: PreparedText) -> Attributed:
        """The text's attribution with the arguments of this request, and each token's completeness."""
        if prepared.alternatives:
            return self._attempt_margins(request, prepared)
        attribution = self._attribution(request, prepared.text, prepared)
        self._snapshot = replace(self._snapshot, current=(attribution, prepared))
        output, identity = text_run.attribute(attribution, self._choice, prepared.random_state, self._should_cancel)
        if prepared.text.spans and prepared.text.trace is None:
            span_results.describe(request, prepared, output, [])
        # Where EOS is the padding, Inseq takes a last EOS away again.
        (sequence,) = output.sequence_attributions
        return output, identity[: sequence.attr_pos_end - sequence.attr_pos_start]

    def _attempt_margins(self, request: AttributionRequest, prepared: PreparedText) -> Attributed:
        """The spans of a text, minus the alternatives of some; nothing is shown of it before both are done."""
        others, texts = [], prepared.texts
        for index, text in enumerate(texts):
            if not self._is_refined:
                self._progress.begin_attempt(index / len(texts), (index + 1) / len(texts))
            attribution = self._attribution(request, text, prepared, is_signed=True)
            others.append(text_run.attribute(attribution, self._choice, prepared.random_state, self._should_cancel))
        (output, identity), *others = others
        return span_results.margins(request, prepared, output, [each for each, _ in others]), identity

    def _attribution(
        self, request: AttributionRequest, text: Text, prepared: PreparedText, *, is_signed: bool = False
    ) -> TextAttribution:
        return TextAttribution(
            request,
            self._loaded,
            self._ledger,
            text,
            prepared.contrast,
            progress=self._progress,
            on_progress=self._on_progress,
            on_step=self._candidates.learn,
            is_signed=is_signed,
            features=prepared.parts.features,
        )

    def _refined(self, prepared: PreparedText) -> FeatureAttributionOutput:
        """The text's attribution with as many points as its scores need to add up (`n_steps: "auto"`)."""
        search = RefinementSearch(self._request.completeness_tolerance or refinement.TOLERANCE, self._most_n_steps)
        begin, finished = 0.0, self._n_steps
        for n_steps in search.attempts():
            end = (1 + begin) / 2  # half of what is left, since nobody knows how many follow
            self._progress.begin_attempt(begin, end)
            output, identity = self._attempt(self._request_with(n_steps), prepared)
            search.note(n_steps, identity)
            self._n_steps = [*finished, n_steps]
            self._snapshot = replace(self._snapshot, whole=output)
            begin = end
        self._convergence.append(completeness.describe(identity) | search.describe())
        if problem := search.warning():
            self._warnings.append(problem)
        return output

    def _measured(
        self, output: FeatureAttributionOutput, identity: list[completeness.Step]
    ) -> FeatureAttributionOutput:
        if identity:
            self._convergence.append(completeness.describe(identity))
            if problem := completeness.warning(self._method, identity):
                self._warnings.append(problem)
        return output

    def _request_with(self, n_steps: int) -> AttributionRequest:
        return refinement.with_steps(self._request, self._method, n_steps)

    def _shape(self, text: Text, prepared: PreparedText) -> Shape:
        source = text.source.input_ids.shape[1] if self._model.is_encoder_decoder else 0
        features = None if prepared.parts.features is None else len(prepared.parts.features.positions)
        return Shape(source, text.first, text.end, len(text.spans), features)

    def _units(self, text: Text) -> int:
        """The units of work that a text counts: its steps, or the forward passes of a method with one step."""
        if not self._method.is_final_step:
            return text.steps
        if not self._method.traits.zeroes_positions:
            return 1
        source, target = text.source.input_ids.shape[1], text.end - 1
        return 1 + target + (2 * source if self._model.is_encoder_decoder else 0)

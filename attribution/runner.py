"""One request on one loaded model -> an Inseq `FeatureAttributionOutput`, with progress and cancellation.

Inseq's own attribution loop runs on the very ids that were generated, one text at a time, because a batch gives other
numbers. Knows nothing of jobs, threads or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from inseq.data import BatchEncoding, FeatureAttributionOutput, merge_attributions
from inseq.models import HuggingfaceModel

from attribution import catalogue, checks, completeness, generation, languages, texts, tokens
from attribution.catalogue import Method
from attribution.contrast import contrast_arguments
from attribution.corrections.registry import Ledger
from attribution.isolation import RANDOM_DRAWS, RandomState, isolated
from attribution.loop import AttributionLoop
from attribution.model_cache import LoadedModel
from attribution.texts import Text
from models import Arguments, AttributionRequest, Progress, Stage
from problems import AttributionFailed, Cancelled, InputRejected, UnsupportedByModel

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class _Prepared:
    """A text that is ready to be attributed; `random_state` is where a random method's draws begin."""

    text: Text
    contrast: dict[str, Arguments]
    random_state: RandomState | None


class Runner:
    """Runs one request; made for it and thrown away after it."""

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        *,
        report: Report,
        should_cancel: Callable[[], bool],
        max_input_tokens: int,
    ) -> None:
        self._request = request
        self._loaded = loaded
        self._model: HuggingfaceModel = loaded.model
        self._method: Method = catalogue.methods()[request.method]
        self._report = report
        self._should_cancel = should_cancel
        self._max_input_tokens = max_input_tokens
        self._latest = Progress()
        self._forwards = 0
        self._on_forward: Callable[[], None] = lambda: None
        self.ledger = Ledger(enabled=request.corrections)
        self.warnings: list[str] = []
        self.token_notes: list[dict[str, Any]] = []  # for each sequence, see `tokens.annotate`
        self.convergence: list[dict[str, list[float]]] = []  # for each sequence, see `completeness.describe`

    def run(self) -> FeatureAttributionOutput:
        """The attribution of all texts, merged as Inseq merges batches.

        Raises a `JobError` that says why it cannot be done, `Cancelled` when it was asked to stop, and whatever Inseq
        and the model raise.
        """
        refusals = list(
            checks.kind_refusals(self._request, self._method, is_encoder_decoder=bool(self._model.is_encoder_decoder))
        )
        if refusals:
            raise UnsupportedByModel(refusals[0].detail, errors=refusals)
        if self._request.attribute_target and not self._model.is_encoder_decoder:
            self.warnings.append("attribute_target has no effect: a decoder-only model's prefix is always attributed.")
        with ExitStack() as stack:
            stack.enter_context(isolated(self._model))
            stack.enter_context(self._watched_forwards())
            fix = self._loaded.embeddings_fix
            applied = [self.ledger.apply(each) for each in fix.corrections]
            if all(applied):
                stack.enter_context(fix.applied(self._model))
            spoken = stack.enter_context(languages.spoken(self._model, self._request.languages))
            prepared = [self._prepare(index, spoken) for index in range(self._request.count)]
            outputs = []
            for index, each in enumerate(prepared):
                done_before = sum(other.text.steps for other in prepared[:index])
                total = sum(other.text.steps for other in prepared)
                outputs.append(self._attribute(each, done_before=done_before, total=total))
        return merge_attributions(outputs)

    def finished(self) -> Progress:
        """All steps done; what is left is to store the result."""
        return self._latest.model_copy(update={"stage": Stage.SAVING, "fraction": 1.0})

    # Progress and cancellation

    @contextmanager
    def _watched_forwards(self) -> Iterator[None]:
        def before_forward(*_: Any) -> None:
            if self._should_cancel():
                raise Cancelled
            self._forwards += 1
            self._on_forward()

        handle = self._loaded.network.register_forward_pre_hook(before_forward)
        try:
            yield
        finally:
            handle.remove()

    def _progress(self, stage: Stage, done: int, total: int | None) -> None:
        fraction = min(1.0, done / total) if total else 0.0
        self._latest = Progress(stage=stage, steps_done=done, steps_total=total, fraction=fraction)
        self._report(self._latest)

    # Texts

    def _prepare(self, index: int, spoken: dict[str, int]) -> _Prepared:
        """Input number `index` with its target."""
        request, loaded = self._request, self._loaded
        prompt, forced = texts.read_input(loaded, request, index, max_tokens=self._max_input_tokens)
        self.warnings += prompt.warnings
        random_state = None
        if forced is None:
            target, random_state = self._generate(prompt, spoken)
        else:
            target = texts.encode_target(loaded, request, prompt, forced)
            if checks.draws_random(request):
                with RANDOM_DRAWS:
                    random_state = RandomState.seeded(request.seed)
        first, end = texts.check_positions(
            self._model, prompt.encoding, target, request.attr_pos_start, request.attr_pos_end, generated=forced is None
        )
        text = Text(prompt, forced, target, first, end)
        return _Prepared(text, contrast_arguments(request, loaded, index, text, self.ledger), random_state)

    def _generate(self, prompt: texts.Prompt, spoken: dict[str, int]) -> tuple[BatchEncoding, RandomState | None]:
        """The target that the model writes, and where the random generators then stand for a method that draws."""
        request = self._request
        arguments = generation.generation_arguments(self._loaded, request, prompt, spoken, self.warnings)
        self._forwards = 0
        self._on_forward = lambda: self._progress(Stage.GENERATING, self._forwards, arguments.get("max_new_tokens"))
        random_method = checks.draws_random(request)
        draws = random_method or generation.samples(self._loaded, arguments)
        with RANDOM_DRAWS if draws else nullcontext():
            if draws:
                RandomState.seeded(request.seed)
            target = generation.generate(self._loaded, request, prompt, arguments, self.ledger)
            return target, RandomState() if random_method else None

    # Attribution

    def _attribute(self, prepared: _Prepared, *, done_before: int, total: int) -> FeatureAttributionOutput:
        text, random_state = prepared.text, prepared.random_state
        if self._method.is_final_step:
            # One step in Inseq's count, of many forwards: those are the steps to watch.
            forwards = self._forwards_of_final_step(text)
            self._forwards = 0
            self._on_forward = lambda: self._progress(Stage.ATTRIBUTING, min(self._forwards, forwards), forwards)
            self._progress(Stage.ATTRIBUTING, 0, forwards)
        else:
            self._on_forward = lambda: None
            self._progress(Stage.ATTRIBUTING, done_before, total)

        def step_done(step: int) -> None:
            # A dropout function may have left the model in train mode; the next step must not run in it.
            self._model.eval()
            if not self._method.is_final_step:
                self._progress(Stage.ATTRIBUTING, done_before + step, total)

        def preparing(begins: bool) -> None:
            self._progress(Stage.PREPARING if begins else Stage.ATTRIBUTING, done_before, total)

        loop = AttributionLoop(self._request, self._loaded, self.ledger, preparing=preparing)
        with RANDOM_DRAWS if random_state else nullcontext():
            if random_state:
                random_state.resume()
            output, identity = loop.attribute(self._method, text, prepared.contrast, step_done)
        self._check_numbers(output)
        self._note(output, text, identity)
        output.info |= self._info(text)
        return output

    def _forwards_of_final_step(self, text: Text) -> int:
        if self._method.name != "value_zeroing":
            return 1
        source, target = text.source.input_ids.shape[1], text.end - 1
        return 1 + target + (2 * source if self._model.is_encoder_decoder else 0)

    def _check_numbers(self, output: FeatureAttributionOutput) -> None:
        """Refuse a result without a single number, and warn of one with gaps; `nan` is for positions yet to come."""
        advice = ""
        if self._method.name == "reagent":
            advice = " Its probes never found the target among the most likely: raise stopping_condition_top_k."
        for sequence in output.sequence_attributions:
            scores = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
            if sequence.target_attributions is not None:
                scores[-1] = scores[-1][: sequence.attr_pos_start]  # the rows that stand before every step
            if any(each.shape[1] == 0 for each in scores):
                raise InputRejected(
                    f"Only {self._model.pad_token!r} was left to attribute, which is this model's padding: Inseq takes "
                    "it away at the end of a text. Give a target with other tokens."
                )
            missing = sum(int(each.isnan().sum()) for each in scores)
            total = sum(each.numel() for each in scores)
            if total and missing == total:
                raise AttributionFailed(
                    f"{self._method.name} gave no number for this text: every score is NaN.{advice}"
                )
            if missing:
                self.warnings.append(f"{missing} of {total} scores are NaN.{advice}")
            for name, values in (sequence.step_scores or {}).items():
                if gaps := int(values.float().isnan().sum()):
                    self.warnings.append(f"{gaps} of {len(values)} values of {name} are NaN.")

    def _note(self, output: FeatureAttributionOutput, text: Text, identity: list[completeness.Step]) -> None:
        """What a result tells beside Inseq's own fields: readable tokens, the template's tokens, convergence."""
        (sequence,) = output.sequence_attributions
        prompt = text.source.input_ids[0].tolist()
        # Without corrections Inseq may have dropped tokens of the prompt: then nothing is marked.
        template = text.prompt.from_template if [each.id for each in sequence.source] == prompt else None
        marks = {"source": template, "target": None if self._model.is_encoder_decoder else template}
        self.token_notes.append(
            {
                side: tokens.annotate(self._model.tokenizer, getattr(sequence, side), mark)
                for side, mark in marks.items()
            }
        )
        # Where EOS is the padding, Inseq takes a last EOS away again.
        identity = identity[: sequence.attr_pos_end - sequence.attr_pos_start]
        if identity:
            self.convergence.append(completeness.describe(identity))
            if problem := completeness.warning(self._method, identity):
                self.warnings.append(problem)

    def _info(self, text: Text) -> dict[str, Any]:
        """What Inseq's own `attribute` adds to a result's `info`, for this text."""
        request = self._request
        if text.forced is None or request.conversations is not None:
            generated = self._model.decode(
                text.target.input_ids, skip_special_tokens=bool(self._model.is_encoder_decoder)
            )
        else:
            generated = [text.forced]
        return {
            "include_eos_baseline": request.include_eos_baseline,
            "attributed_fn": self._model.get_attributed_fn(request.attributed_fn).__name__,
            "attribution_args": dict(request.attribution_args),
            "attributed_fn_args": dict(request.attributed_fn_args),
            "step_scores": list(request.step_scores),
            "step_scores_args": dict(request.step_scores_args),
            "input_texts": [text.prompt.text],
            "generated_texts": generated,
            "generation_args": dict(request.generation_args),
            "constrained_decoding": request.targets is not None,
            "generate_from_target_prefix": False,
        }

"""One request on one loaded model -> an Inseq `FeatureAttributionOutput`, with progress and cancellation.

Inseq's own attribution loop runs on the very ids that were generated, one text at a time, because a batch gives other
numbers. Knows nothing of jobs, threads or storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from inseq.data import BatchEncoding, FeatureAttributionOutput, merge_attributions
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

from attribution.catalogue import checks, inseq_catalogue
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.registry import Ledger
from attribution.estimates.passes import Shape
from attribution.inseq_loop import completeness
from attribution.inseq_loop.text_attribution import Attributed, AttributionLoop, EngineChoice
from attribution.isolation import RANDOM_DRAWS, RandomState, isolated
from attribution.model_cache.loading import LoadedModel
from attribution.run.engine_choice import Referee
from attribution.text import encoding, generation, languages, readable_tokens
from attribution.text.contrast import contrast_arguments
from attribution.text.encoding import Text
from attribution.text.generation import Written
from attribution.text.readable_tokens import Note
from attribution.text.step_labels import labels
from models import Arguments, AttributionRequest, Progress, Stage
from problems import AttributionFailed, Cancelled, InputRejected, UnsupportedByModel

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class _Prepared:
    """A text that is ready to be attributed; `random_state` is where a random method's draws begin."""

    text: Text
    contrast: dict[str, Arguments]
    random_state: RandomState | None
    notes: dict[str, list[Note]]  # see `tokens.annotate`
    info: dict[str, Any]


@dataclass(frozen=True)
class _SoFar:
    """What is done: whole texts, and the one that is being attributed."""

    steps_total: int = 0
    outputs: tuple[FeatureAttributionOutput, ...] = ()
    current: tuple[AttributionLoop, _Prepared] | None = None


class Runner:
    """Runs one request; made for it and thrown away after it."""

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        *,
        report: Report,
        should_cancel: Callable[[], bool],
        expected_seconds: Callable[[Sequence[Shape]], float],
        max_input_tokens: int,
        written: dict[int, Written] | None = None,
        recheck_share: float = 0.0,
    ) -> None:
        """`expected_seconds`: how long texts of these shapes should take, asked once they are known. `written`: what
        the model wrote for each input, shared by the methods of a comparison.
        """
        self._request = request
        self._loaded = loaded
        self._model: HuggingfaceModel = loaded.model
        self._method: Method = inseq_catalogue.methods()[request.attribution_method]
        self._report = report
        self._should_cancel = should_cancel
        self._expected_seconds = expected_seconds
        self._max_input_tokens = max_input_tokens
        self._written = written
        self._latest = Progress()
        self._so_far = _SoFar()
        self._forwards = 0
        self._on_forward: Callable[[], None] = lambda: None
        self.expected = self.took = 0.0  # seconds of the attribution, before it and after it
        self._on_part: Callable[[float], None] = lambda _: None
        self._referee = Referee(request, loaded, lambda _: self._check_cancelled(), recheck_share)
        self.ledger = Ledger(enabled=request.corrections)
        self.warnings: list[str] = []
        self.token_notes: list[dict[str, list[Note]]] = []  # for each sequence, see `tokens.annotate`
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
            self._referee.longest = max(each.text.longest for each in prepared)
            self._on_forward = lambda: None
            self.expected = self._expected_seconds([self._shape(each.text) for each in prepared])
            began = time.monotonic()
            units = [self._units(each.text) for each in prepared]
            self._so_far = _SoFar(sum(each.text.steps for each in prepared))
            for index, each in enumerate(prepared):
                output = self._attribute(each, done_before=sum(units[:index]), total=sum(units))
                self._so_far = replace(self._so_far, outputs=(*self._so_far.outputs, output), current=None)
            self.took = time.monotonic() - began - self._referee.probing_seconds
        return merge_attributions(list(self._so_far.outputs))

    def partial(self) -> tuple[FeatureAttributionOutput, list[dict[str, list[Note]]]] | None:
        """The scores of the generated tokens that are done, and the notes of their tokens; None where there are none.

        Called from any thread, also after the run failed.
        """
        so_far = self._so_far
        outputs, notes = list(so_far.outputs), self.token_notes[: len(so_far.outputs)]
        if so_far.current is not None:
            loop, prepared = so_far.current
            if (current := loop.partial()) is not None:
                current.info |= prepared.info
                outputs.append(current)
                (sequence,) = current.sequence_attributions
                notes.append({side: _named(each, getattr(sequence, side)) for side, each in prepared.notes.items()})
        if not outputs:
            return None
        output = merge_attributions(outputs)
        done = sum(each.attr_pos_end - each.attr_pos_start for each in output.sequence_attributions)
        output.info["partial"] = {"steps_done": done, "steps_total": so_far.steps_total}
        return output, notes

    @property
    def request(self) -> AttributionRequest:
        return self._request

    @property
    def engine(self) -> dict[str, Any]:
        """For `info`: which engine ran, and what was found about the single pass."""
        return self._referee.describe(self._method)

    def finished(self) -> Progress:
        """All steps done; what is left is to store the result."""
        return self._latest.model_copy(update={"stage": Stage.SAVING, "fraction": 1.0})

    # Progress and cancellation

    @contextmanager
    def _watched_forwards(self) -> Iterator[None]:
        def before_forward(*_: Any) -> None:
            self._check_cancelled()
            self._forwards += 1
            self._on_forward()

        handle = self._loaded.network.register_forward_pre_hook(before_forward)
        try:
            yield
        finally:
            handle.remove()

    def _check_cancelled(self) -> None:
        if self._should_cancel():
            raise Cancelled

    def _tick(self, part: float) -> None:
        """Called within the single pass, before each of its pieces, with the part of a text that is done."""
        self._check_cancelled()
        self._on_part(part)

    def _progress(self, stage: Stage, done: int, total: int | None) -> None:
        fraction = min(1.0, done / total) if total else 0.0
        first = stage is Stage.ATTRIBUTING and not done
        eta = round(self.expected, 3) if first else None  # later, what was done tells more
        self._latest = Progress(stage=stage, steps_done=done, steps_total=total, fraction=fraction, eta_seconds=eta)
        self._report(self._latest)

    # Texts

    def _prepare(self, index: int, spoken: dict[str, int]) -> _Prepared:
        """Input number `index` with its target."""
        request, loaded = self._request, self._loaded
        prompt, forced = encoding.read_input(loaded, request, index, max_tokens=self._max_input_tokens)
        self.warnings += prompt.warnings
        random_state = None
        if forced is None:
            written = self._generate(index, prompt, spoken)
            self.warnings += written.warnings
            for correction in written.corrections:
                self.ledger.apply(correction)
            # Where the draws of a random method begin: behind those of the generation.
            target, random_state = written.target, written.random_state if checks.draws_random(request) else None
        else:
            target = encoding.encode_target(loaded, request, prompt, forced)
            if checks.draws_random(request):
                with RANDOM_DRAWS:
                    random_state = RandomState.seeded(request.seed)
        first, end = encoding.check_positions(
            self._model, prompt.encoding, target, request.attr_pos_start, request.attr_pos_end, generated=forced is None
        )
        text = Text(prompt, forced, target, first, end)
        contrast = contrast_arguments(request, loaded, index, text, self.ledger)
        return _Prepared(text, contrast, random_state, self._notes(text), self._info(text))

    def _shape(self, text: Text) -> Shape:
        source = text.source.input_ids.shape[1] if self._model.is_encoder_decoder else 0
        return Shape(source, text.first, text.end)

    def _generate(self, index: int, prompt: encoding.Prompt, spoken: dict[str, int]) -> Written:
        """The target that the model writes, once for all methods of a comparison."""
        if self._written is None:
            return self._write(prompt, spoken)
        if index not in self._written:
            self._written[index] = self._write(prompt, spoken)
        return self._written[index]

    def _write(self, prompt: encoding.Prompt, spoken: dict[str, int]) -> Written:
        request, warnings, ledger = self._request, list[str](), Ledger(enabled=self._request.corrections)
        arguments = generation.generation_arguments(self._loaded, request, prompt, spoken, warnings)
        self._forwards = 0
        self._on_forward = lambda: self._progress(Stage.GENERATING, self._forwards, arguments.get("max_new_tokens"))
        # Another method of the comparison may draw.
        then_draws = checks.draws_random(request) or self._written is not None
        draws = then_draws or generation.samples(self._loaded, arguments)
        with RANDOM_DRAWS if draws else nullcontext():
            if draws:
                RandomState.seeded(request.seed)
            target = generation.generate(self._loaded, request, prompt, arguments, ledger)
            return Written(target, RandomState() if then_draws else None, warnings, ledger.met)

    # Attribution

    def _attribute(self, prepared: _Prepared, *, done_before: int, total: int) -> FeatureAttributionOutput:
        text, random_state = prepared.text, prepared.random_state
        self._on_forward = lambda: None
        self._progress(Stage.ATTRIBUTING, done_before, total)
        if self._method.is_final_step:
            units, self._forwards = self._units(text), 0
            self._on_forward = lambda: self._progress(
                Stage.ATTRIBUTING, done_before + min(self._forwards, units), total
            )

        most = 0  # steps and parts of a text are told in any order, and progress never goes back

        def told(steps: int) -> None:
            nonlocal most
            if steps > most:
                most = steps
                self._progress(Stage.ATTRIBUTING, done_before + most, total)

        def step_done(step: int) -> None:
            # A dropout function may have left the model in train mode; the next step must not run in it.
            if self._model.training:
                self._model.eval()
            if not self._method.is_final_step:
                told(step)

        def preparing(begins: bool) -> None:
            self._progress(Stage.PREPARING if begins else Stage.ATTRIBUTING, done_before, total)

        self._on_part = lambda part: told(int(part * text.steps))

        def attribute(choice: EngineChoice) -> Attributed:
            loop = AttributionLoop(
                self._request, self._loaded, self.ledger, preparing=preparing, choice=choice, tick=self._tick
            )
            self._so_far = replace(self._so_far, current=(loop, prepared))
            with RANDOM_DRAWS if random_state else nullcontext():
                if random_state:
                    random_state.resume()
                return loop.attribute(self._method, text, prepared.contrast, step_done)

        output, identity = self._referee.rechecked(self._method, attribute)
        self._check_numbers(output)
        self._note(output, prepared, identity)
        output.info |= prepared.info
        return output

    def _units(self, text: Text) -> int:
        """What a text counts in the progress: its steps, or the forwards of a method that has one step only."""
        if not self._method.is_final_step:
            return text.steps
        if not self._method.traits.zeroes_positions:
            return 1
        source, target = text.source.input_ids.shape[1], text.end - 1
        return 1 + target + (2 * source if self._model.is_encoder_decoder else 0)

    def _check_numbers(self, output: FeatureAttributionOutput) -> None:
        """Refuse a result without a single number, and warn of one with gaps; `nan` is for positions yet to come."""
        advice = f" {self._method.traits.advice_on_nan}".rstrip()
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

    def _notes(self, text: Text) -> dict[str, list[Note]]:
        """What is known of the tokens of a text beside their ids: readable ones, the template's.

        A decoder-only model's source is the beginning of its target.
        """
        seq2seq, marks = bool(self._model.is_encoder_decoder), text.prompt.from_template
        target = readable_tokens.annotate(self._model.tokenizer, _joined(text.target), None if seq2seq else marks)
        source = readable_tokens.annotate(self._model.tokenizer, _joined(text.source), marks) if seq2seq else target
        return {"source": source, "target": target}

    def _note(self, output: FeatureAttributionOutput, prepared: _Prepared, identity: list[completeness.Step]) -> None:
        """What a result tells beside Inseq's own fields: readable tokens, the template's tokens, convergence."""
        (sequence,), text, seq2seq = output.sequence_attributions, prepared.text, bool(self._model.is_encoder_decoder)
        target = text.target.input_ids[0].tolist()
        known, prompt = prepared.notes, text.source.input_ids[0].tolist()
        all_ids = {"source": prompt if seq2seq else target, "target": target}
        notes = {}
        for side, ids in all_ids.items():
            shown = getattr(sequence, side)
            shown_ids = [each.id for each in shown]
            if shown_ids == ids[: len(shown)]:
                notes[side] = known[side][: len(shown)]
            else:
                # Contrasts have labels of their own; without corrections Inseq may have dropped tokens of the prompt.
                marked = shown_ids[: len(prompt)] == prompt and not (seq2seq and side == "target")
                mark = text.prompt.from_template if marked else None
                notes[side] = readable_tokens.annotate(self._model.tokenizer, shown, mark)
        self.token_notes.append(notes)
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


def _named(notes: list[Note], named: list[TokenWithId]) -> list[Note]:
    """The notes of these tokens; a contrast's "this → that" has no id, and a text of its own."""
    return [
        note if readable_tokens.is_id(token.id) else note | {"text": token.token}
        for note, token in zip(notes, named, strict=False)
    ]


def _joined(encoding: BatchEncoding) -> list[TokenWithId]:
    return labels(encoding.input_tokens[0], encoding.input_ids[0].tolist())

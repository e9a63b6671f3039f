"""One request on one loaded model -> an Inseq `FeatureAttributionOutput`, with progress and cancellation.

Inseq's own attribution loop runs on the very ids that were generated: no decoding and encoding again, which can change
them, and one text at a time, because a batch gives other numbers. Knows nothing of jobs, threads or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.data import (
    Batch,
    BatchEmbedding,
    BatchEncoding,
    DecoderOnlyBatch,
    EncoderDecoderBatch,
    FeatureAttributionOutput,
    merge_attributions,
)
from inseq.models import HuggingfaceModel
from inseq.utils import format_input_texts

from attribution import catalogue, checks, corrections
from attribution.catalogue import Method
from attribution.contrast import contrast_arguments
from attribution.isolation import RANDOM_DRAWS, RandomState, isolated
from attribution.model_cache import LoadedModel
from attribution.texts import (
    check_positions,
    encode_source,
    encode_target,
    from_ids,
    generation_room,
    refuse_generated_pad,
)
from models import AttributionRequest, Progress, Stage
from problems import AttributionFailed, Cancelled, NothingGenerated, UnsupportedByModel

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Text:
    """One input, tokenized, with the ids that are attributed to it."""

    text: str
    forced: str | None
    source: BatchEncoding  # [1, source_len]
    target: BatchEncoding  # [1, target_len]; for decoder-only models the source and what follows it
    first: int  # first target position that is attributed
    end: int  # one behind the last
    random_state: RandomState | None
    contrast: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.end - self.first


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
        self.corrections: list[str] = []
        self.warnings: list[str] = []

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
        with isolated(self._model), self._watched_forwards():
            texts = [self._prepare(index) for index in range(len(self._request.inputs))]
            outputs = []
            for done, text in enumerate(texts):
                outputs.append(self._attribute(text, done_before=sum(t.steps for t in texts[:done]), texts=texts))
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

    def _prepare(self, index: int) -> Text:
        request = self._request
        # Without special tokens, Inseq takes those that the text spells out as well.
        (text,), targets = format_input_texts(
            [request.inputs[index]],
            None if request.targets is None else [request.targets[index]],
            request.skip_special_tokens,
            self._model.special_tokens,
        )
        source = encode_source(
            self._loaded,
            text,
            max_tokens=self._max_input_tokens,
            include_eos_baseline=request.include_eos_baseline,
            skip_special_tokens=request.skip_special_tokens,
        )
        if targets is not None:
            random_state = self._seeded() if checks.draws_random(request) else None
            target = encode_target(
                self._loaded,
                targets[0],
                source,
                include_eos_baseline=request.include_eos_baseline,
                skip_special_tokens=request.skip_special_tokens,
            )
        else:
            target, random_state = self._generate(source, index)
        first, end = check_positions(
            self._model, source, target, request.attr_pos_start, request.attr_pos_end, generated=request.targets is None
        )
        forced = None if targets is None else targets[0]
        return Text(
            text,
            forced,
            source,
            target,
            first,
            end,
            random_state,
            contrast_arguments(request, self._model, index, target),
        )

    def _seeded(self) -> RandomState:
        with RANDOM_DRAWS:
            return RandomState.seeded(self._request.seed)

    def _generate(self, source: BatchEncoding, index: int) -> tuple[BatchEncoding, RandomState | None]:
        """Let the model write, and take exactly the ids that it wrote."""
        arguments = checks.typed(self._request.generation_args, catalogue.generation_parameters())
        arguments |= generation_room(self._loaded, source, arguments, self.warnings)
        config = self._loaded.network.generation_config
        samples = bool(arguments.get("do_sample", config.do_sample))
        self._forwards = 0
        total = arguments.get("max_new_tokens")
        self._on_forward = lambda: self._progress(Stage.GENERATING, self._forwards, total)
        draws = samples or checks.draws_random(self._request)
        with RANDOM_DRAWS if draws else nullcontext(), torch.no_grad():
            if draws:
                RandomState.seeded(self._request.seed)
            output = self._loaded.network.generate(
                inputs=source.input_ids,
                attention_mask=source.attention_mask,
                return_dict_in_generate=True,
                **arguments,
            )
            random_state = RandomState() if checks.draws_random(self._request) else None
        ids = output.sequences[:1]
        prompt = 1 if self._model.is_encoder_decoder else source.input_ids.shape[1]
        written = ids[0, prompt:].tolist()
        empty = _ids_of(self._model.eos_token_id, config.eos_token_id, self._loaded.network.config.pad_token_id)
        content = [each for each in written if each not in empty]
        if not content:
            raise NothingGenerated(
                f"The model ended at once for input {index}: it generated no token but the end of the text. Give "
                "another input, generated_text, or generation_args such as min_new_tokens."
            )
        target = from_ids(self._model, ids, include_eos_baseline=self._request.include_eos_baseline)
        refuse_generated_pad(self._model, target, prompt)
        return target, random_state

    # Attribution

    def _attribute(self, text: Text, *, done_before: int, texts: list[Text]) -> FeatureAttributionOutput:
        total = sum(each.steps for each in texts)
        if self._method.is_final_step:
            # One step in Inseq's count, of many forwards: those are the steps to watch.
            total = self._forwards_of_final_step(text)
            self._forwards = 0
            self._on_forward = lambda: self._progress(Stage.ATTRIBUTING, min(self._forwards, total), total)
            self._progress(Stage.ATTRIBUTING, 0, total)
        else:
            self._on_forward = lambda: None
            self._progress(Stage.ATTRIBUTING, done_before, total)

        def step_done(step: int) -> None:
            # A dropout function may have left the model in train mode; the next step must not run in it.
            self._model.eval()
            if not self._method.is_final_step:
                self._progress(Stage.ATTRIBUTING, done_before + step, total)

        with RANDOM_DRAWS if text.random_state else nullcontext():
            if text.random_state:
                text.random_state.resume()
            names = self._request.step_scores
            if self._method.is_final_step and names:
                output = self._call_inseq(self._method, text, [], step_done)
                scores = self._call_inseq(catalogue.methods()["dummy"], text, names, step_done)
                _merge_step_scores(output, scores)
                self.corrections.append("final_step_step_scores")
            else:
                output = self._call_inseq(self._method, text, names, step_done)
        self._check_numbers(output)
        output.info |= self._info(text)
        return output

    def _check_numbers(self, output: FeatureAttributionOutput) -> None:
        """Refuse a result without a single number, and warn of one with gaps; `nan` is for positions yet to come."""
        for sequence in output.sequence_attributions:
            scores = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
            if sequence.target_attributions is not None:
                scores[-1] = scores[-1][: sequence.attr_pos_start]  # the rows that stand before every step
            missing = sum(int(each.isnan().sum()) for each in scores)
            total = sum(each.numel() for each in scores)
            if total and missing == total:
                raise AttributionFailed(f"{self._method.name} gave no number for this text: every score is NaN.")
            if missing:
                self.warnings.append(f"{missing} of {total} scores are NaN.")

    def _forwards_of_final_step(self, text: Text) -> int:
        if self._method.name != "value_zeroing":
            return 1
        source, target = text.source.input_ids.shape[1], text.end - 1
        return 1 + target + (2 * source if self._model.is_encoder_decoder else 0)

    def _call_inseq(
        self, method: Method, text: Text, step_scores: list[str], step_done: Callable[[int], None]
    ) -> FeatureAttributionOutput:
        """Inseq's loop over the steps of one text, with fresh arguments: its own defaults are shared by all callers."""
        request, functions = self._request, catalogue.step_functions()
        loaded_method = self._load_method(method)
        call_args = {} if method.name == "dummy" else checks.typed(request.attribution_args, method.call_parameters)
        fn_name = corrections.corrected_step_function(request.attributed_fn or "probability")
        attributed_fn = self._model.get_attributed_fn(fn_name)
        fn_parameters = functions[request.attributed_fn].parameters if request.attributed_fn else {}
        scored = {k: v for name in step_scores for k, v in functions[name].parameters.items()}
        corrected = {corrections.corrected_step_function(name): name for name in step_scores}
        self.corrections += corrections.step_function_corrections([*step_scores, request.attributed_fn or ""])
        with _steps_reported(self._model, step_done):
            output = loaded_method.attribute(
                self._batch(text),
                attributed_fn=attributed_fn,
                attr_pos_start=text.first,
                attr_pos_end=text.end,
                show_progress=False,
                pretty_progress=False,
                output_step_attributions=request.output_step_attributions,
                attribute_target=request.attribute_target and bool(self._model.is_encoder_decoder),
                step_scores=list(corrected),
                skip_special_tokens=request.skip_special_tokens,
                clean_special_chars=request.clean_special_chars,
                attribution_args=call_args,
                attributed_fn_args=checks.typed(text.contrast["attributed_fn_args"], fn_parameters),
                step_scores_args=checks.typed(text.contrast["step_scores_args"], scored),
            )
        _rename_step_scores(output, corrected)
        return output

    def _load_method(self, method: Method) -> FeatureAttribution:
        request, model = self._request, self._model
        init_args = checks.typed(request.attribution_args, method.init_parameters) if method.name != "dummy" else {}
        identity = f"{self._loaded.key.name.replace('/', '--')}@{self._loaded.key.revision}"
        if method.name == "reagent":
            self.corrections += corrections.seed_word_classes(model.tokenizer, identity)
        if method.is_layer:
            # Layer gradients are taken at the embedding's output, which must then be part of the graph.
            model.get_embedding_layer().requires_grad_(True)
        with corrections.cache_identity(model, identity):
            loaded_method = FeatureAttribution.load(method.name, attribution_model=model, **init_args)
        if method.name == "value_zeroing":
            self.corrections += corrections.correct_value_zeroing(loaded_method, model)
        return loaded_method

    def _batch(self, text: Text) -> DecoderOnlyBatch | EncoderDecoderBatch:
        def embedded(encoding: BatchEncoding, *, as_targets: bool) -> Batch:
            return Batch(
                encoding,
                BatchEmbedding(
                    input_embeds=self._model.embed_ids(encoding.input_ids, as_targets=as_targets),
                    baseline_embeds=self._model.embed_ids(encoding.baseline_ids, as_targets=as_targets),
                ),
            )

        if self._model.is_encoder_decoder:
            return EncoderDecoderBatch(embedded(text.source, as_targets=False), embedded(text.target, as_targets=True))
        return DecoderOnlyBatch.from_batch(embedded(text.target, as_targets=False))

    def _info(self, text: Text) -> dict[str, Any]:
        """What Inseq's own `attribute` adds to a result's `info`, for this text."""
        request = self._request
        return {
            "include_eos_baseline": request.include_eos_baseline,
            "attributed_fn": self._model.get_attributed_fn(request.attributed_fn).__name__,
            "attribution_args": dict(request.attribution_args),
            "attributed_fn_args": dict(request.attributed_fn_args),
            "step_scores": list(request.step_scores),
            "step_scores_args": dict(request.step_scores_args),
            "input_texts": [text.text],
            "generated_texts": [text.forced]
            if text.forced is not None
            else self._model.decode(text.target.input_ids, skip_special_tokens=bool(self._model.is_encoder_decoder)),
            "generation_args": dict(request.generation_args),
            "constrained_decoding": request.targets is not None,
            "generate_from_target_prefix": False,
        }


@contextmanager
def _steps_reported(model: HuggingfaceModel, step_done: Callable[[int], None]) -> Iterator[None]:
    """Have the model's formatter tell of every finished step: Inseq calls it once for each generated token."""
    original = model.formatter

    class ReportingFormatter(original):  # type: ignore[valid-type, misc]
        steps = 0

        @classmethod
        def enrich_step_output(cls, *args: Any, **kwargs: Any) -> Any:
            output = original.enrich_step_output(*args, **kwargs)
            cls.steps += 1
            step_done(cls.steps)
            return output

    model.formatter = ReportingFormatter
    try:
        yield
    finally:
        del model.formatter


def _rename_step_scores(output: FeatureAttributionOutput, names: dict[str, str]) -> None:
    """Corrected functions ran under names of ours; the result tells the scores by Inseq's names."""
    for each in (*output.sequence_attributions, *(output.step_attributions or [])):
        if each.step_scores:
            each.step_scores = {names.get(name, name): score for name, score in each.step_scores.items()}


def _merge_step_scores(output: FeatureAttributionOutput, scores: FeatureAttributionOutput) -> None:
    """Final-step methods see the sequence once, so a second, attribution-free run brings the scores of its steps."""
    for attribution, scored in zip(output.sequence_attributions, scores.sequence_attributions, strict=True):
        attribution.step_scores = scored.step_scores
    for step, scored_step in zip(output.step_attributions or [], scores.step_attributions or [], strict=True):
        step.step_scores = scored_step.step_scores


def _ids_of(*values: int | list[int] | None) -> set[int]:
    return {each for value in values if value is not None for each in (value if isinstance(value, list) else [value])}

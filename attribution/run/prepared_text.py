"""Reads a request's texts: prompt, target, attributed positions, contrast, and what the result says of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from attribution.corrections.registry import Ledger
from attribution.estimates.token_counts import CountedInput, counted_generation
from attribution.isolation import RANDOM_DRAWS, RandomState, held
from attribution.model_cache.loading import LoadedModel
from attribution.run import token_notes
from attribution.run.generated_targets import GeneratedTargets
from attribution.run.method_progress import MethodProgress
from attribution.run.time_plan import TimePlan
from attribution.run.token_notes import SideNotes
from attribution.text import encoding
from attribution.text.contrast import ContrastReader
from attribution.text.encoding import Prompt, Text
from attribution.text.generation_settings import GenerationSettings
from attribution.text.given_target import given_target
from attribution.text.growing_text import continuation_of
from attribution.text.sandbox import TextSandbox
from attribution.text.segments import InputParts, parts_of
from attribution.text.target_spans import Alternative, SpanReader
from models import Arguments, AttributionRequest


@dataclass(frozen=True)
class PreparedText:
    """A text that is ready to be attributed."""

    text: Text
    contrast: dict[str, Arguments]  # see `ContrastReader.arguments`
    random_state: RandomState | None  # where a random method's draws begin
    notes: SideNotes
    info: dict[str, Any]  # see `inseq_info`
    alternatives: Sequence[Alternative]  # of the text's spans, in their order
    generation_args: Arguments | None  # see `GenerationSettings.recorded`; None for a given target
    parts: InputParts  # of the prompt

    @property
    def texts(self) -> list[Text]:
        """The text, and those of its alternatives."""
        return [self.text, *(each.text for each in self.alternatives)]


@dataclass(frozen=True)
class TextReader:
    """Reads the texts of one request, one after another; adds to `ledger` and `warnings`."""

    request: AttributionRequest
    loaded: LoadedModel
    targets: GeneratedTargets
    ledger: Ledger
    warnings: list[str]
    progress: MethodProgress
    plan: TimePlan
    draws_random: bool  # whether the method draws random numbers
    max_input_tokens: int
    sandbox: TextSandbox

    def read_all(self, languages: dict[str, int]) -> list[PreparedText]:
        """Each input with its target, which is generated if the request gives none.

        `languages`: see `languages.spoken`. Raises a `JobError` that says what to change: `InputRejected`,
        `NothingGenerated` or `AttributionFailed`.
        """
        inputs = [
            encoding.read_input(
                self.loaded, self.request, index, max_tokens=self.max_input_tokens, sandbox=self.sandbox
            )
            for index in range(self.request.count)
        ]
        if self.request.has_target or self.targets.are_known:
            return [self._read(index, *each, languages) for index, each in enumerate(inputs)]
        # All prompts before the first target: the time that they take together is what the progress is made of.
        prompts = [prompt for prompt, _ in inputs]
        settings = [
            self.targets.settings_of_input(index, prompt, self.request, self.loaded, languages)
            for index, prompt in enumerate(prompts)
        ]
        most = [counted_generation(self.loaded, self.request, *each) for each in zip(prompts, settings, strict=True)]
        self.progress.expect_generating([each.new for each in most], self.plan.before_generating(most))
        texts = [self._read(index, prompt, None, languages) for index, prompt in enumerate(prompts)]
        self.plan.generated([self._counted(*each) for each in zip(texts, settings, strict=True)], self.targets.seconds)
        return texts

    def _counted(self, prepared: PreparedText, settings: GenerationSettings) -> CountedInput:
        text = prepared.text
        before = 1 if self.loaded.model.is_encoder_decoder else text.source.input_ids.shape[1]
        new = text.target.input_ids.shape[1] - before
        return counted_generation(self.loaded, self.request, text.prompt, settings, new)

    def _read(self, index: int, prompt: Prompt, forced: str | None, languages: dict[str, int]) -> PreparedText:
        request, loaded = self.request, self.loaded
        self.warnings.extend(prompt.warnings)
        random_state = generation_args = None
        target = given_target(loaded, request, index, prompt, forced, sandbox=self.sandbox, warnings=self.warnings)
        if target is None:
            self.warnings.extend(encoding.ending_warning(loaded, request))
            generated = self.targets.of_input(
                index,
                prompt,
                request,
                loaded,
                languages=languages,
                draws_random=self.draws_random,
                progress=self.progress,
            )
            self.warnings.extend(generated.settings.warnings)
            generation_args = generated.settings.recorded
            for correction in generated.corrections:
                self.ledger.apply(correction)
            # A random method's draws begin after those of the generation.
            target, random_state = generated.target, generated.random_state if self.draws_random else None
        elif self.draws_random:
            with held(RANDOM_DRAWS, self.sandbox.should_cancel):
                random_state = RandomState.seeded(request.seed)
        self.progress.request.write_text(index, continuation_of(loaded.model, prompt.encoding, target))
        first, end = encoding.check_positions(
            loaded.model,
            prompt.encoding,
            target,
            request.attr_pos_start,
            request.attr_pos_end,
            generated=not request.has_target,
        )
        text = Text(prompt, forced, target, first, end)
        contrasts = ContrastReader(request, loaded, text, self.ledger, self.warnings, self.sandbox)
        contrast = contrasts.arguments(index)
        text = replace(text, contrasts=contrasts.encodings, contrast_ids=contrasts.paired)
        notes, alternatives = token_notes.of_text(loaded.model, text), list[Alternative]()
        parts = parts_of(request, prompt, notes["source"], self.warnings)
        if request.attributes_spans:
            text, alternatives = SpanReader(request, loaded, self.sandbox, self.warnings).read(text, notes["target"])
            notes = token_notes.with_spans(notes, text.spans)
        info = inseq_info(request, loaded, text)
        return PreparedText(text, contrast, random_state, notes, info, alternatives, generation_args, parts)


def inseq_info(request: AttributionRequest, loaded: LoadedModel, text: Text) -> dict[str, Any]:
    """What Inseq's own `attribute` adds to a result's `info`, for this text."""
    model = loaded.model
    if text.forced is None or request.conversations is not None:
        generated = model.decode(text.target.input_ids, skip_special_tokens=bool(model.is_encoder_decoder))
    else:
        generated = [text.forced]
    return {
        "include_eos_baseline": request.include_eos_baseline,
        "attributed_fn": model.get_attributed_fn(request.attributed_fn).__name__,
        "attribution_args": dict(request.attribution_args),
        "attributed_fn_args": dict(request.attributed_fn_args),
        "step_scores": list(request.step_scores),
        "step_scores_args": dict(request.step_scores_args),
        "input_texts": [text.prompt.text],
        "generated_texts": generated,
        "generation_args": dict(request.generation_args),
        "constrained_decoding": request.has_target,
        "generate_from_target_prefix": False,
    }

"""Generation of a target: the ids that the model generates for a prompt are those that are attributed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from inseq.data import BatchEncoding

from attribution.corrections.positions_and_padding import GENERATED_IDS
from attribution.corrections.registry import Correction, Ledger
from attribution.isolation import RandomState
from attribution.model_cache.device_memory import is_out_of_memory
from attribution.model_cache.loading import LoadedModel
from attribution.network_state import as_one_call
from attribution.text.encoding import Prompt, encode_whole_target, from_ids
from attribution.text.generation_settings import GenerationSettings
from attribution.text.growing_text import streamed
from attribution.text.languages import needs_target_language
from models import Arguments, AttributionRequest
from problems import AttributionFailed, InputRejected, NothingGenerated


@dataclass(frozen=True)
class GeneratedTarget:
    """The target that the model generated for one input, shared by all methods of a comparison."""

    target: BatchEncoding  # [1, target_len]
    random_state: RandomState | None  # of the random generators after the generation, for a method that draws
    settings: GenerationSettings
    corrections: list[Correction]


def generate(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    settings: GenerationSettings,
    ledger: Ledger,
    on_text: Callable[[str], None],
) -> BatchEncoding:
    """Generate the target ([1, target_len]). `on_text` gets the text behind the prompt while it grows (see `streamed`).

    Raises `NothingGenerated` if it has no tokens but those that end a text, `InputRejected` if the request's
    `generation_args` make `generate` fail, and `AttributionFailed` if it fails on this model whatever they are.
    """
    model, source, config = loaded.model, prompt.encoding, settings.config
    ids = _generated_ids(loaded, request, source, settings, on_text)
    written = ids[0, 1 if model.is_encoder_decoder else source.input_ids.shape[1] :].tolist()
    empty = _ids_of(model.eos_token_id, config.eos_token_id, loaded.network.config.pad_token_id)
    forced = _ids_of(config.forced_bos_token_id)
    if not [each for index, each in enumerate(written) if each not in empty and (index or each not in forced)]:
        raise NothingGenerated(
            f"The model ended at once for {prompt.text[:40]!r}: it generated no token but the end of the text. Give "
            "another input, generated_text, or generation_args such as min_new_tokens."
        )
    if not _survives_text(loaded, request, prompt, ids) and not ledger.apply(GENERATED_IDS):
        return _as_inseq_reads_it(loaded, request, prompt, ids)
    return from_ids(
        model, ids, include_eos_baseline=request.include_eos_baseline, keep_first=bool(model.is_encoder_decoder)
    )


def _generated_ids(
    loaded: LoadedModel,
    request: AttributionRequest,
    source: BatchEncoding,
    settings: GenerationSettings,
    on_text: Callable[[str], None],
) -> torch.Tensor:
    """All ids of the target ([1, target_len]), with the prompt or the start token."""
    try:
        return _call(loaded, source, settings.call | streamed(loaded, source, settings, on_text))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {error}"
        if request.generation_args and _works_by_default(loaded, source):
            raise InputRejected(f"generate() fails with these generation_args: {said}") from error
        raise AttributionFailed(
            f"Transformers' generate() fails on this model, whatever the generation_args: {said}. Give generated_text."
        ) from error


def _call(loaded: LoadedModel, source: BatchEncoding, arguments: Arguments) -> torch.Tensor:
    with torch.no_grad(), as_one_call(loaded.network):
        # The ids by position: not every model's own `generate` calls them `inputs`.
        output = loaded.network.generate(
            source.input_ids, attention_mask=source.attention_mask, return_dict_in_generate=True, **arguments
        )
    ids: torch.Tensor = output.sequences[:1]
    return ids


def _works_by_default(loaded: LoadedModel, source: BatchEncoding) -> bool:
    """Whether the model generates a token without the request's arguments."""
    try:
        _call(loaded, source, {"max_new_tokens": 1, "do_sample": False})
    except Exception:  # whatever it is, the request's arguments are not its cause
        return False
    return True


def _text_of(loaded: LoadedModel, ids: torch.Tensor) -> str:
    """Generated ids as the text that Inseq makes of them."""
    (text,) = loaded.model.decode(ids, skip_special_tokens=bool(loaded.model.is_encoder_decoder))
    return str(text)


def _as_inseq_reads_it(
    loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, ids: torch.Tensor
) -> BatchEncoding:
    text = _text_of(loaded, ids)
    if not _starts_as_inseq_wants(loaded, prompt, text):
        raise AttributionFailed(
            f"Inseq's own generation fails here: {text[:40]!r} does not start with the input. Leave corrections on."
        )
    return encode_whole_target(loaded, request, prompt, text)


def _starts_as_inseq_wants(loaded: LoadedModel, prompt: Prompt, text: str) -> bool:
    """Whether the text starts with the input, as Inseq requires of decoder-only models; behind BOS it does not."""
    return bool(loaded.model.is_encoder_decoder) or text.startswith(prompt.text)


def _survives_text(loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, ids: torch.Tensor) -> bool:
    """Whether decoding and encoding again, as Inseq does, gives these very ids."""
    model, text = loaded.model, _text_of(loaded, ids)
    if not _starts_as_inseq_wants(loaded, prompt, text) or needs_target_language(model.tokenizer):
        return False
    again = model.encode(
        [text],
        as_targets=bool(model.is_encoder_decoder),
        add_special_tokens=not request.skip_special_tokens,
    )
    return bool(torch.equal(again.input_ids, ids))


def _ids_of(*values: int | list[int] | None) -> set[int]:
    return {each for value in values if value is not None for each in (value if isinstance(value, list) else [value])}

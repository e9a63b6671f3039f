"""Generation of a target: the ids that the model generates for a prompt are those that are attributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from inseq.data import BatchEncoding

from attribution.catalogue import checks, inseq_catalogue
from attribution.corrections.positions_and_padding import GENERATED_IDS
from attribution.corrections.registry import Correction, Ledger
from attribution.isolation import RandomState
from attribution.model_cache.loading import LoadedModel
from attribution.network_state import as_one_call
from attribution.text.encoding import Prompt, encode_whole_target, from_ids
from attribution.text.languages import needs_target_language
from models import Arguments, AttributionRequest
from problems import AttributionFailed, InputRejected, NothingGenerated

_DEFAULT_NEW_TOKENS = 20  # Transformers' own default


@dataclass(frozen=True)
class GeneratedTarget:
    """The target that the model generated for one input, shared by all methods of a comparison."""

    target: BatchEncoding  # [1, target_len]
    random_state: RandomState | None  # of the random generators after the generation, for a method that draws
    warnings: list[str]
    corrections: list[Correction]


def generation_arguments(
    loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, languages: dict[str, int], warnings: list[str]
) -> Arguments:
    """The arguments of `generate`: the request's own, the language's first token, and a length that fits the model.

    Adds to `warnings` if a default length was cut. Raises `InputRejected` if an explicit one does not fit.
    """
    arguments = languages | checks.typed(request.generation_args, inseq_catalogue.generation_parameters())
    return arguments | _room(loaded, prompt.encoding, arguments, warnings)


def samples(loaded: LoadedModel, arguments: Arguments) -> bool:
    """Whether generation with these arguments draws random numbers."""
    return bool(arguments.get("do_sample", loaded.network.generation_config.do_sample))


def generate(
    loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, arguments: Arguments, ledger: Ledger
) -> BatchEncoding:
    """Generate the target ([1, target_len]).

    Raises `NothingGenerated` if it has no tokens but those that end a text, and `InputRejected` if the
    `generation_args` fail.
    """
    model, source = loaded.model, prompt.encoding
    try:
        with torch.no_grad(), as_one_call(loaded.network):
            output = loaded.network.generate(
                inputs=source.input_ids, attention_mask=source.attention_mask, return_dict_in_generate=True, **arguments
            )
    except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        if not request.generation_args:
            raise
        raise InputRejected(f"generate() fails with these generation_args: {type(error).__name__}: {error}") from error
    ids = output.sequences[:1]
    written = ids[0, 1 if model.is_encoder_decoder else source.input_ids.shape[1] :].tolist()
    config = loaded.network.generation_config
    empty = _ids_of(model.eos_token_id, config.eos_token_id, loaded.network.config.pad_token_id)
    forced = _ids_of(arguments.get("forced_bos_token_id"), config.forced_bos_token_id)
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


def _room(loaded: LoadedModel, source: BatchEncoding, arguments: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """The `max_new_tokens` that keeps generation within the model's positions; empty if the request gives a length.

    A default is cut, with a warning. Raises `InputRejected` if an explicit length does not fit.
    """
    prompt = 0 if loaded.model.is_encoder_decoder else source.input_ids.shape[1]
    config = loaded.network.generation_config
    asked = arguments.get("max_new_tokens")
    if asked is None and arguments.get("max_length") is not None:
        asked = int(arguments["max_length"]) - prompt
        if asked < 1:
            raise InputRejected(
                f"max_length is {arguments['max_length']} but the input alone has {prompt} tokens. Use max_new_tokens."
            )
    room = loaded.limit - prompt if loaded.limit else None
    if asked is not None:
        if room is not None and asked > room:
            raise InputRejected(
                f"The input has {prompt} tokens and the model {loaded.limit} positions: there is room for {room} new "
                f"tokens, not {asked}."
            )
        return {}
    default = config.max_new_tokens or (config.max_length - prompt if config.max_length else _DEFAULT_NEW_TOKENS)
    if room is not None and default > room:
        if room < 1:
            raise InputRejected(
                f"The input fills all of the model's {loaded.limit} positions: there is no room to generate."
            )
        warnings.append(f"Generation was cut to the {room} tokens that the model has room for.")
        return {"max_new_tokens": room}
    return {"max_new_tokens": max(1, default)}


def _ids_of(*values: int | list[int] | None) -> set[int]:
    return {each for value in values if value is not None for each in (value if isinstance(value, list) else [value])}

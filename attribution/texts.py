"""Texts and ids as Inseq's encodings, and what must hold for them: lengths, positions, pad tokens, token boundaries.

Every check here needs a tokenizer, and so happens when the job runs. Raises `InputRejected` with what to do about it.
"""

from __future__ import annotations

from typing import Any

import torch
from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel

from attribution.model_cache import LoadedModel
from problems import InputRejected

# A tokenizer without a limit reports a very large number.
_NO_LIMIT = 10**9
_DEFAULT_NEW_TOKENS = 20  # Transformers' own default


def encode_source(
    loaded: LoadedModel, text: str, *, max_tokens: int, include_eos_baseline: bool, skip_special_tokens: bool
) -> BatchEncoding:
    """The input, tokenized as Inseq does it ([1, source_len]), after counting: some tokenizers truncate silently."""
    model = loaded.model
    count = _count(model, text, as_targets=False, skip_special_tokens=skip_special_tokens)
    if count == 0:
        raise InputRejected("The input text has no tokens.")
    limit = min(_tokenizer_limit(model), loaded.limit or _NO_LIMIT, max_tokens)
    if count > limit:
        raise InputRejected(f"The input text has {count} tokens; at most {limit} are possible here. Shorten it.")
    encoding = model.encode(
        [text],
        return_baseline=True,
        include_eos_baseline=include_eos_baseline,
        add_special_tokens=not skip_special_tokens,
    )
    _refuse_pad(model, encoding.input_tokens[0], "The input text")
    return encoding


def encode_target(
    loaded: LoadedModel, text: str, source: BatchEncoding, *, include_eos_baseline: bool, skip_special_tokens: bool
) -> BatchEncoding:
    """A forced target, tokenized as Inseq does it ([1, target_len])."""
    model, as_targets = loaded.model, bool(loaded.model.is_encoder_decoder)
    count = _count(model, text, as_targets=as_targets, skip_special_tokens=skip_special_tokens)
    limit = min(_tokenizer_limit(model), loaded.limit or _NO_LIMIT)
    if count > limit:
        raise InputRejected(f"generated_text has {count} tokens; the model allows {limit}.")
    encoding = model.encode(
        [text],
        as_targets=as_targets,
        return_baseline=True,
        include_eos_baseline=include_eos_baseline,
        add_special_tokens=not skip_special_tokens,
    )
    tokens = encoding.input_tokens[0]
    if as_targets:
        _refuse_pad(model, tokens[1:], "generated_text")
        if len(tokens) <= 1:  # the start token alone
            raise InputRejected("generated_text has no tokens.")
        return encoding
    _refuse_pad(model, tokens[:-1], "generated_text")  # a closing EOS may be the pad token, as in GPT-2
    prompt = source.input_ids[0].tolist()
    ids = encoding.input_ids[0].tolist()
    if ids[: len(prompt)] != prompt:
        # A tokenizer that ends texts (with EOS) does so to the prompt as well.
        raise InputRejected(
            "generated_text does not tokenize to the input's tokens and more: the border between them falls inside a "
            "token. Move it to a token's border, such as before a space."
        )
    if len(ids) == len(prompt):
        raise InputRejected("generated_text adds nothing to input_text: there is no token to attribute.")
    return encoding


def refuse_generated_pad(model: HuggingfaceModel, target: BatchEncoding, first: int) -> None:
    """Refuse a generation with the pad token inside: Inseq would drop it and mislabel what follows."""
    if model.pad_token in target.input_tokens[0][first:-1]:
        raise InputRejected(
            f"The model generated {model.pad_token!r}, its padding, in the middle of the text: Inseq drops such tokens "
            "and then mislabels the rows. Forbid it with generation_args.suppress_tokens."
        )


def from_ids(model: HuggingfaceModel, ids: torch.Tensor, *, include_eos_baseline: bool) -> BatchEncoding:
    """Generated ids ([1, length]) as the encoding that Inseq makes of a text, baseline included."""
    unk, eos = model.tokenizer.unk_token_id, model.eos_token_id
    baseline = torch.full_like(ids, unk)
    if not include_eos_baseline:
        baseline = torch.where(ids == eos, ids, baseline)
    if model.is_encoder_decoder:
        # The start token is not replaced: Inseq puts it in front of the baseline as it is.
        baseline[:, 0] = ids[:, 0]
    return BatchEncoding(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        input_tokens=model.convert_ids_to_tokens(ids, skip_special_tokens=False),
        baseline_ids=baseline,
    )


def generation_room(
    loaded: LoadedModel, source: BatchEncoding, arguments: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """The `max_new_tokens` that makes generation stay within the model's positions.

    An explicit wish that does not fit is refused; a default is cut, with a warning.
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


def check_positions(
    model: HuggingfaceModel,
    source: BatchEncoding,
    target: BatchEncoding,
    start: int | None,
    end: int | None,
    *,
    generated: bool,
) -> tuple[int, int]:
    """The target positions to attribute. Inseq would silently move or clamp what does not fit; here it is refused."""
    length = target.input_ids.shape[1]
    first = 1 if model.is_encoder_decoder else source.input_ids.shape[1]
    what = f"the {'generated' if generated else 'forced'} target has {length} tokens"
    if start is not None and not first <= start < length:
        raise InputRejected(
            f"attr_pos_start must be between {first} and {length - 1} for this text: {what}, of which the first "
            f"{first} are not attributed."
        )
    if end is not None and not (start or first) < end <= length:
        raise InputRejected(f"attr_pos_end must be between {(start or first) + 1} and {length} for this text: {what}.")
    return start if start is not None else first, end if end is not None else length


def _count(model: HuggingfaceModel, text: str, *, as_targets: bool, skip_special_tokens: bool) -> int:
    encoded = model.tokenizer(
        text=None if as_targets else text,
        text_target=text if as_targets else None,
        add_special_tokens=not skip_special_tokens,
        truncation=False,
        verbose=False,
    )
    return len(encoded["input_ids"])


def _tokenizer_limit(model: HuggingfaceModel) -> int:
    return min(int(model.tokenizer.model_max_length), _NO_LIMIT)


def _refuse_pad(model: HuggingfaceModel, tokens: list[str], what: str) -> None:
    if model.pad_token in tokens:
        raise InputRejected(
            f"{what} contains {model.pad_token!r}, which is this model's padding: Inseq drops such tokens and then "
            "mislabels the rows. Take it out of the text."
        )

"""The arguments of Transformers' `generate`: which a request may set, why others are refused, and which contradict.

A model has defaults of its own (`generation_config.json`). The effective arguments are these, the request's over them,
and Transformers' own where neither says anything.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, Literal

from transformers import GenerationConfig
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationMixin,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from attribution.catalogue.inseq_catalogue import Parameter
from models import Arguments
from settings import Settings

MOST_STOP_STRINGS = 16
MOST_STOP_CHARACTERS = 200  # of all together: Transformers makes a table of [vocabulary, characters]

_TYPES = {
    "int": int, "float": float, "bool": bool, "str": str, "list[int]": list[int],
    "list[list[int]]": list[list[int]], "Union[int, list[int]]": int | list[int],
}  # fmt: skip
# Where the docstring leaves a type out, or JSON needs another one.
_OTHER_TYPES = {
    "early_stopping": bool | Literal["never"],
    "exponential_decay_length_penalty": tuple[int, float],
    "forced_eos_token_id": int | list[int],
    "sequence_bias": list[tuple[list[int], float]],
    "stop_strings": str | list[str],
}

_CACHE = "it changes no token; the service chooses the cache"
_OUTPUT = "not part of a result"
_DRAFTS = "drafts come from an assistant model, and a job has one model. Use prompt_lookup_num_tokens"
_FROM_HUB = "Transformers would run code from the Hub for it, which this service never does"
_OBJECT = "it is an object of Python or a tensor, which JSON cannot carry"
_BY_SERVICE = "set by the service"

REFUSED = {
    "num_return_sequences": "one sequence is attributed for each input",
    "output_scores": "ask for step_scores instead",
    "output_logits": "ask for step_scores instead",
    "token_healing": "it replaces the last token of the prompt, so that another text than input_text would be "
    "attributed. End input_text before the word that is to be healed",
    "watermarking_config": "the service has no detector of watermarks. Use sequence_bias to favour tokens",
    **dict.fromkeys(("output_attentions", "output_hidden_states"), _OUTPUT),
    **dict.fromkeys(("return_dict_in_generate", "tokenizer", "inputs", "attention_mask"), _BY_SERVICE),
    **dict.fromkeys(
        ("cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
         "prefill_chunk_size", "continuous_batching_config", "low_memory", "past_key_values"), _CACHE),
    **dict.fromkeys(
        ("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
         "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
         "speculation_type", "use_mtp", "assistant_model", "assistant_tokenizer"), _DRAFTS),
    **dict.fromkeys(
        ("penalty_alpha", "dola_layers", "num_beam_groups", "diversity_penalty", "constraints", "force_words_ids",
         "custom_generate", "trust_remote_code"), _FROM_HUB),
    **dict.fromkeys(
        ("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer",
         "negative_prompt_ids", "negative_prompt_attention_mask", "inputs_embeds"), _OBJECT),
    "synced_gpus": "a job runs on one device",
}  # fmt: skip

# Refused arguments that a model's own defaults may set, with the value that leaves them out of a generation. The first
# would change the tokens, so that leaving them out is worth a warning.
_CHANGE_TOKENS: dict[str, Any] = {
    "token_healing": False, "watermarking_config": None, "penalty_alpha": None, "dola_layers": None,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "constraints": None, "force_words_ids": None,
}  # fmt: skip
_CHANGE_NO_TOKEN: dict[str, Any] = {
    "num_return_sequences": 1, "output_scores": False, "output_logits": None, "output_attentions": False,
    "output_hidden_states": False, "cache_implementation": None, "cache_config": None, "max_cache_len": None,
    "compile_config": None, "prefill_chunk_size": None, "low_memory": None, "is_assistant": None, "use_mtp": None,
    "assistant_early_exit": None,
}  # fmt: skip

# For each argument the value that has no effect, and the class of Transformers that refuses what is out of its range.
_Check = tuple[Any, Callable[[Any], Any]]
_SAMPLING: dict[str, _Check] = {
    "temperature": (1.0, TemperatureLogitsWarper),
    "top_k": (0, TopKLogitsWarper),
    "top_p": (1.0, TopPLogitsWarper),
    "min_p": (None, MinPLogitsWarper),
    "top_h": (None, TopHLogitsWarper),
    "typical_p": (1.0, TypicalLogitsWarper),
    "epsilon_cutoff": (0.0, EpsilonLogitsWarper),
    "eta_cutoff": (0.0, EtaLogitsWarper),
}
_ALWAYS: dict[str, _Check] = {
    "repetition_penalty": (1.0, RepetitionPenaltyLogitsProcessor),
    "encoder_repetition_penalty": (1.0, RepetitionPenaltyLogitsProcessor),
    "no_repeat_ngram_size": (0, NoRepeatNGramLogitsProcessor),
    "encoder_no_repeat_ngram_size": (0, NoRepeatNGramLogitsProcessor),
    "bad_words_ids": (None, NoBadWordsLogitsProcessor),
    "sequence_bias": (None, SequenceBiasLogitsProcessor),
}
_AT_LEAST = {
    "num_beams": 1, "max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "min_length": 0,
    "prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1,
}  # fmt: skip
_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True)
class GenerationLimits:
    """What this server generates for one text at most; no other argument multiplies time or memory more than twice."""

    new_tokens: int
    beams: int

    @classmethod
    def of(cls, settings: Settings) -> GenerationLimits:
        return cls(settings.max_new_tokens, settings.max_num_beams)


@cache
def parameters() -> dict[str, Parameter]:
    """The arguments that a request may set, with the types of Transformers' docstring."""
    documented = re.findall(r"^\s+(\w+)\s+\(`([^`]+)`", GenerationConfig.__doc__ or "", re.MULTILINE)
    found = {name: _TYPES[type_name] for name, type_name in documented if type_name in _TYPES} | _OTHER_TYPES
    return {name: Parameter(name, found[name], None) for name in sorted(found) if name not in REFUSED}


def undecided() -> set[str]:
    """Arguments of this version of Transformers that are neither served nor refused."""
    private = {"transformers_version", "self", "kwargs"}
    every = {*vars(GenerationConfig()), *signature(GenerationMixin.generate).parameters} - private
    return {name for name in every if not name.startswith("_")} - parameters().keys() - REFUSED.keys()


def effective(defaults: GenerationConfig, given: Arguments) -> GenerationConfig:
    """A model's defaults with `given` over them, and Transformers' defaults below: what a generation uses.

    Raises `ValueError` for values that Transformers refuses.
    """
    config = copy.deepcopy(defaults)
    config.update(**given)
    config.update(defaults_only=True, **GenerationConfig._get_default_generation_params())  # noqa: SLF001 - its docstring names it
    return config


def left_out(defaults: GenerationConfig) -> tuple[Arguments, list[str]]:
    """What a model's defaults set that is not served: arguments that switch it off, and a warning for each that would
    have changed the tokens.
    """
    found = {
        name: neutral
        for name, neutral in (_CHANGE_TOKENS | _CHANGE_NO_TOKEN).items()
        if getattr(defaults, name, None) not in (None, neutral)
    }
    warnings = [
        f"The model's own {name} ({getattr(defaults, name)}) is left out: {REFUSED[name]}."
        for name in found
        if name in _CHANGE_TOKENS
    ]
    return found, warnings


def contradictions(
    config: GenerationConfig, limits: GenerationLimits | None = None, *, is_encoder_decoder: bool | None
) -> Iterator[tuple[str, str]]:
    """Yield the name of each effective argument that cannot work or exceeds the server's limits, and the reason."""
    if limits is not None and (config.num_beams or 1) > limits.beams:
        yield (
            "num_beams",
            (
                f"num_beams is {config.num_beams}, and this server computes at most {limits.beams} beams "
                "(INSEQ_API_MAX_NUM_BEAMS)."
            ),
        )
    for name, least in _AT_LEAST.items():
        value = getattr(config, name, None)
        if value is not None and value < least:
            yield name, f"{name} must be at least {least}, and is {value}."
    for name, (neutral, check) in (_ALWAYS | (_SAMPLING if config.do_sample else {})).items():
        value = getattr(config, name, None)
        if value is None or value == neutral:
            continue
        try:
            check(value)
        except (ValueError, TypeError) as error:
            greedy = " For the most probable token each time, set do_sample to false." if name == "temperature" else ""
            reason = str(error).splitlines()[0].rstrip(".").replace("`penalty`", name).replace("`ngram_size`", name)
            yield name, f"{reason.replace('`', '')}.{greedy}"
    if config.min_new_tokens and config.max_new_tokens and config.min_new_tokens > config.max_new_tokens:
        yield (
            "min_new_tokens",
            (
                f"min_new_tokens is {config.min_new_tokens}, and at most {config.max_new_tokens} are generated "
                "(max_new_tokens)."
            ),
        )
    if config.exponential_decay_length_penalty is not None and config.eos_token_id is None:
        yield "exponential_decay_length_penalty", "exponential_decay_length_penalty needs an eos_token_id."
    if is_encoder_decoder and config.guidance_scale not in (None, 1):
        yield (
            "guidance_scale",
            "guidance_scale is for decoder-only models: Transformers' fails on encoder-decoder models.",
        )
    yield from _stop_string_errors(config.stop_strings)


def _stop_string_errors(given: str | list[str] | None) -> Iterator[tuple[str, str]]:
    strings = [given] if isinstance(given, str) else given
    if strings is None:
        return
    if not strings or not all(strings):
        yield "stop_strings", "stop_strings holds no text: leave it out, or give strings of a character or more."
    elif len(strings) > MOST_STOP_STRINGS or sum(map(len, strings)) > MOST_STOP_CHARACTERS:
        yield (
            "stop_strings",
            (f"stop_strings takes at most {MOST_STOP_STRINGS} strings, with {MOST_STOP_CHARACTERS} characters in all."),
        )


def without_effect(config: GenerationConfig, given: Arguments) -> Iterator[str]:
    """Yield a warning for `given` arguments that the effective ones make idle."""
    idle = [name for name, (neutral, _) in _SAMPLING.items() if given.get(name) not in (None, neutral)]
    if idle and not config.do_sample:
        yield f"{_listed(idle)} no effect, because do_sample is false: each token is the most probable one."
    beams = config.num_beams or 1
    if beams == 1 and (idle := [name for name in _BEAMS if given.get(name)]):
        yield f"{_listed(idle)} no effect, because num_beams is 1."
    if beams > 1 and given.get("prompt_lookup_num_tokens"):
        yield "prompt_lookup_num_tokens has no effect, because num_beams is above 1."


def of_the_model(name: str, reason: str) -> str:
    """The reason of a contradiction whose argument is not the request's own."""
    return (
        f"The model's own generation_config contradicts itself or the request: {reason} Give {name} in generation_args."
    )


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'}"


def recorded(config: GenerationConfig) -> Arguments:
    """Every served argument with the value that is used, those that are None left out; a request may send them."""
    values = {name: getattr(config, name, None) for name in parameters()}
    return {name: value for name, value in values.items() if value is not None}

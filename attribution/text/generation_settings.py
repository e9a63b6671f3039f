"""What a target is generated with: the model's defaults, the request's arguments, and a length within the limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import GenerationConfig

from attribution.catalogue import checks, generation_catalogue
from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.model_cache.loading import LoadedModel
from attribution.text.encoding import Prompt
from models import Arguments, AttributionRequest
from problems import InputRejected

_DEFAULT_NEW_TOKENS = 20  # Transformers' own default


@dataclass(frozen=True)
class GenerationSettings:
    """How the target of one input is generated."""

    call: Arguments  # what `generate` is called with, beside the ids
    config: GenerationConfig  # every argument with the value that is used
    max_new_tokens: int
    warnings: list[str] = field(default_factory=list)

    @property
    def samples(self) -> bool:
        """Whether the generation draws random numbers."""
        return bool(self.config.do_sample)

    @property
    def beams(self) -> int:
        return int(self.config.num_beams or 1)

    @property
    def recorded(self) -> Arguments:
        """Every argument with the value that is used, as a request may send them."""
        found = generation_catalogue.recorded(self.config) | {"max_new_tokens": self.max_new_tokens}
        found.pop("max_length", None)  # `max_new_tokens` takes its place
        return found


def generation_settings(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    languages: dict[str, int],
    limits: GenerationLimits | None = None,
) -> GenerationSettings:
    """The settings for one input: the request's own arguments, the language's first token, and a length that fits.

    `limits`: the server's; a model's default length is cut to them, with a warning. Raises `InputRejected` if an
    explicit length does not fit, if there are too many beams, or if arguments contradict each other.
    """
    given = languages | checks.typed(request.generation_args, generation_catalogue.parameters())
    defaults = loaded.network.generation_config
    without, warnings = generation_catalogue.left_out(defaults)
    length = _length(loaded, prompt, given, limits, warnings)
    call = without | given | {"max_new_tokens": length}
    call.pop("max_length", None)
    try:
        config = generation_catalogue.effective(defaults, call)
    except ValueError as error:
        raise InputRejected(f"Transformers refuses these generation_args: {_first_line(error)}") from error
    seq2seq = bool(loaded.model.is_encoder_decoder)
    for name, reason in generation_catalogue.contradictions(config, limits, is_encoder_decoder=seq2seq):
        if name == "min_new_tokens" and not {"min_new_tokens", "max_new_tokens"} <= given.keys():
            warnings.append(f"{reason} Give both.")
        else:
            raise InputRejected(reason if name in given else generation_catalogue.of_the_model(name, reason))
    warnings += generation_catalogue.without_effect(config, given)
    if config.stop_strings:
        call["tokenizer"] = loaded.model.tokenizer
    return GenerationSettings(call, config, length, warnings)


def _length(
    loaded: LoadedModel, prompt: Prompt, given: Arguments, limits: GenerationLimits | None, warnings: list[str]
) -> int:
    """The `max_new_tokens` of an input: the request's own length, or else the model's default, cut to what is possible.

    Raises `InputRejected` if an explicit length does not fit, or if there is no room at all.
    """
    seq2seq = bool(loaded.model.is_encoder_decoder)
    size = int(prompt.encoding.input_ids.shape[1])
    before = 1 if seq2seq else size  # what `max_length` counts beside the new tokens: the start token, or the prompt
    room = loaded.limit - (0 if seq2seq else size) if loaded.limit else None
    if (asked := _asked(given, before)) is not None:
        if room is not None and asked > room:
            raise InputRejected(
                f"The input has {size} tokens and the model {loaded.limit} positions: there is room for {room} new "
                f"tokens, not {asked}."
            )
        return asked
    if room is not None and room < 1:
        raise InputRejected(
            f"The input fills all of the model's {loaded.limit} positions: there is no room to generate."
        )
    length = _default_length(loaded.network.generation_config, before, warnings)
    if room is not None and length > room:
        length = room
        warnings.append(f"Generation was cut to the {room} tokens that the model has room for.")
    if limits is not None and length > limits.new_tokens:
        warnings.append(
            f"The model's own default is up to {length} new tokens: it was cut to {limits.new_tokens}, this server's "
            "limit (INSEQ_API_MAX_NEW_TOKENS)."
        )
        length = limits.new_tokens
    return length


def _asked(given: Arguments, before: int) -> int | None:
    """The number of new tokens that the request names, if it does."""
    if given.get("max_new_tokens") is not None:
        return int(given["max_new_tokens"])
    if given.get("max_length") is None:
        return None
    asked = int(given["max_length"]) - before
    if asked < 1:
        raise InputRejected(
            f"max_length is {given['max_length']} but the input alone has {before} tokens. Use max_new_tokens."
        )
    return asked


def _default_length(defaults: GenerationConfig, before: int, warnings: list[str]) -> int:
    """The number of new tokens of a model's own defaults."""
    if defaults.max_new_tokens is not None:
        return int(defaults.max_new_tokens)
    if defaults.max_length is None:
        return _DEFAULT_NEW_TOKENS
    length = int(defaults.max_length) - before
    if length >= 1:
        return length
    warnings.append(
        f"The model's own max_length ({defaults.max_length}) counts the prompt, which has {before} tokens: it was "
        f"ignored, and at most {_DEFAULT_NEW_TOKENS} tokens are generated. Give max_new_tokens."
    )
    return _DEFAULT_NEW_TOKENS


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]

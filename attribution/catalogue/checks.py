"""Checks of a request before it is queued: names, arguments, limits, and combinations that Inseq computes wrongly.

Each refusal says what to do instead. Reads the catalogue; needs no model, only whether it is an encoder-decoder where
that is known. What can be known only from the tokens is checked in `attribution.text` and `attribution.run`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from attribution.catalogue import (
    config_checks,
    generation_catalogue,
    inseq_catalogue,
    masked_methods,
    refinement,
    traits,
)
from attribution.catalogue.inseq_catalogue import Method, Parameter, StepFunction, attributed_function
from attribution.catalogue.single_pass_eligibility import obstacle
from attribution.catalogue.span_checks import span_errors
from attribution.catalogue.span_checks import with_defaults as with_span_defaults
from attribution.catalogue.traits import BATCH_SIZES, CONTRASTS, DEFAULT_FUNCTION, SHORTHANDS, STEP_COUNTS, Reads
from attribution_schema.did_you_mean import did_you_mean
from models import Arguments, AttributionRequest, Engine, ProblemItem
from problems import InvalidRequest
from settings import Settings


def resolve(
    request: AttributionRequest,
    settings: Settings,
    *,
    is_encoder_decoder: bool | None,
    config: PretrainedConfig | None = None,
    generation: GenerationConfig | None = None,
) -> AttributionRequest:
    """Return the request as it will run: shorthands moved to `attribution_args`, every argument checked.

    `config` and `generation`: the model's own, where its files are on this machine.

    Raises `InvalidRequest` with every error found, each with a JSON pointer into the body.
    """
    errors: list[ProblemItem] = []
    method = inseq_catalogue.methods().get(request.attribution_method)
    if method is None:
        errors.append(_unknown("/method", "method", request.attribution_method, inseq_catalogue.methods()))
        raise InvalidRequest(errors[0].detail, errors=errors)
    request = with_span_defaults(request)
    functions = _functions(request, errors)
    attribution_args = _with_shorthands(request, method, errors)
    attributed = functions[:1] if request.attributed_fn is not None else [attributed_function(request)]
    scored = functions[1:] if request.attributed_fn is not None else functions
    if None not in functions:
        # Inseq's signature has a number.
        first = {"n_steps": refinement.FIRST} if refinement.is_asked(attribution_args) else {}
        errors += _argument_errors(
            "/attribution_args", attribution_args | first, method.parameters, f"method {method.name!r}", required=True
        )
        errors += refinement.refusals(request, method, attribution_args)
        errors += span_errors(request, method)
        errors += _function_argument_errors("/attributed_fn_args", request.attributed_fn_args, attributed)
        errors += _function_argument_errors("/step_scores_args", request.step_scores_args, scored)
        errors += _refusals(request, method, attribution_args, [f for f in functions if f])
        masking = list(masked_methods.refusals(request, method, attribution_args))
        errors += masking
        if not masking and request.engine == Engine.SINGLE_PASS and (reason := obstacle(request, method)):
            errors.append(_at("/engine", f"The single pass cannot compute this request: {reason} Use auto or inseq."))
        if is_encoder_decoder is not None:
            errors += kind_refusals(request, method, is_encoder_decoder=is_encoder_decoder)
    if config is not None:
        errors += config_checks.config_refusals(method, config)
        errors += config_checks.dropout_refusals(request, config)
    errors += _generation_errors(request, settings, generation, is_encoder_decoder=is_encoder_decoder)
    errors += _template_errors(request)
    errors += _limit_errors(request, attribution_args, settings)
    if errors:
        detail = errors[0].detail if len(errors) == 1 else f"{len(errors)} errors; the first: {errors[0].detail}"
        raise InvalidRequest(detail, errors=errors)
    return request.model_copy(
        update={"attribution_args": attribution_args} | dict.fromkeys(SHORTHANDS) | of_corrections(request)
    )


def of_corrections(request: AttributionRequest) -> Arguments:
    """The fields that a request without corrections changes: nothing of ours runs then."""
    return {} if request.corrections else {"candidates": 0}


def typed(values: Arguments, parameters: dict[str, Parameter]) -> Arguments:
    """Checked arguments in the types that Inseq expects: JSON's lists as tuples where it wants tuples."""
    return {name: parameters[name].parse(value) for name, value in values.items() if name in parameters}


def draws_random(request: AttributionRequest) -> bool:
    """Whether the attribution draws from a random generator (generation may, by its own arguments)."""
    functions = [attributed_function(request).traits, *map(traits.of_step_function, request.step_scores)]
    is_random = traits.of_method(request.attribution_method).is_random
    return is_random or any(each.draws_dropout for each in functions)


def repeats_rows(request: AttributionRequest, method: Method) -> bool:
    """Whether the method gives the attributed function several rows at once."""
    return method.traits.repeats_rows or request.attribution_args.get("perturbations_per_eval", 1) > 1


def kind_refusals(request: AttributionRequest, method: Method, *, is_encoder_decoder: bool) -> Iterator[ProblemItem]:
    """Yield an error for each thing that this kind of model, decoder-only or encoder-decoder, cannot do."""
    if is_encoder_decoder and method.traits.is_decoder_only:
        yield _at(
            "/method", f"{method.name} supports decoder-only models only: Inseq's fails on encoder-decoder models."
        )
    if not is_encoder_decoder and request.languages:
        yield _at("/tokenizer_args", "Languages are for multilingual translation models, which are encoder-decoders.")
    if not is_encoder_decoder and request.targets is not None and request.conversations is None:
        for index, (text, target) in enumerate(zip(request.inputs, request.targets, strict=True)):
            if not target.startswith(text):
                pointer = "/generated_text" if isinstance(request.generated_text, str) else f"/generated_text/{index}"
                yield _at(
                    pointer,
                    "generated_text must start with input_text for a decoder-only model: send the input followed by "
                    "its continuation.",
                )
    for name in ("attributed_fn_args", "step_scores_args"):
        if not is_encoder_decoder and getattr(request, name).get("contrast_sources"):
            yield _at(
                f"/{name}/contrast_sources",
                "contrast_sources needs an encoder-decoder model. For a decoder-only one put the other context into "
                "contrast_targets.",
            )
    arguments = request.attributed_fn_args
    alone = not is_encoder_decoder or arguments.get("contrast_sources")
    if alone and arguments.get("contrast_force_inputs") and attributed_function(request).traits.difference:
        yield _at(
            "/attributed_fn",
            f"With contrast_force_inputs {request.attributed_fn} is a function of the contrast alone: it depends on no "
            f"token of the input. Attribute {attributed_function(request).traits.difference}.",
        )


def _functions(request: AttributionRequest, errors: list[ProblemItem]) -> list[StepFunction | None]:
    """The attributed function (if named) and the step scores, None for each unknown one."""
    known = inseq_catalogue.step_functions()
    named = [("/attributed_fn", request.attributed_fn)] if request.attributed_fn is not None else []
    named += [(f"/step_scores/{index}", name) for index, name in enumerate(request.step_scores)]
    for pointer, name in named:
        if name not in known:
            errors.append(_unknown(pointer, "step function", str(name), known))
    if len(set(request.step_scores)) < len(request.step_scores):
        errors.append(_at("/step_scores", "step_scores names a function twice; each is reported once."))
    return [known.get(str(name)) for _, name in named]


def _with_shorthands(request: AttributionRequest, method: Method, errors: list[ProblemItem]) -> Arguments:
    merged = dict(request.attribution_args)
    for name in SHORTHANDS:
        value = getattr(request, name)
        if value is None:
            continue
        if name not in method.parameters:
            errors.append(_at(f"/{name}", f"method {method.name!r} has no {name}. {_accepted(method.parameters)}"))
        elif merged.get(name, value) != value:
            errors.append(_at(f"/{name}", f"{name} and attribution_args.{name} differ; send one of them."))
        else:
            merged[name] = value
    return merged


def _argument_errors(
    pointer: str, values: Arguments, accepted: dict[str, Parameter], owner: str, *, required: bool
) -> Iterator[ProblemItem]:
    for name, value in values.items():
        if name not in accepted:
            close = did_you_mean(name, accepted)
            yield _at(f"{pointer}/{_escape(name)}", f"{owner} has no argument {name!r}{close}. {_accepted(accepted)}")
            continue
        try:
            accepted[name].parse(value)
        except ValueError as error:
            yield _at(f"{pointer}/{_escape(name)}", f"{name}: {error}")
    if required:
        for name, parameter in accepted.items():
            if parameter.is_required and name not in values:
                yield _at(f"{pointer}/{name}", f"{owner} needs {name} ({parameter.type_name}).")


def _function_argument_errors(
    pointer: str, values: Arguments, functions: Iterable[StepFunction | None]
) -> Iterator[ProblemItem]:
    chosen = [function for function in functions if function is not None]
    accepted = {name: parameter for function in chosen for name, parameter in function.parameters.items()}
    owner = " and ".join(repr(function.name) for function in chosen) or "no step function, so it"
    yield from _argument_errors(pointer, values, accepted, owner, required=True)
    for function in chosen:
        if function.is_contrastive and not any(values.get(name) for name in CONTRASTS):
            yield _at(
                f"{pointer}/contrast_targets",
                f"{function.name!r} compares with something: give contrast_targets, or contrast_sources for an "
                "encoder-decoder model. Inseq would silently compare the target with itself.",
            )
        if function.is_contrastive and values.get("contrast_targets") and values.get("contrast_ids"):
            yield _at(f"{pointer}/contrast_ids", "Give either contrast_targets or contrast_ids.")


def _refusals(
    request: AttributionRequest, method: Method, attribution_args: Arguments, functions: list[StepFunction]
) -> Iterator[ProblemItem]:
    """Combinations that Inseq 0.7.1 gets wrong or fails on, whatever the model."""
    attributed = functions[0] if request.attributed_fn is not None else None
    if attributed is not None and attributed.name != DEFAULT_FUNCTION and method.ignores_attributed_fn:
        yield _at(
            "/attributed_fn",
            f"{method.name} attributes no function of the output, so attributed_fn would be ignored. Use it as a step "
            "score.",
        )
    elif attributed is not None:
        yield from _attributed_fn_refusals(request, method, attributed)
    if request.attribute_target and (method.is_layer or not method.traits.can_attribute_target):
        yield _at("/attribute_target", f"{method.name} cannot attribute the target prefix.")
    if attribution_args.get("attribute_to_layer_input") and not attribution_args.get("target_layer"):
        yield _at(
            "/attribution_args/attribute_to_layer_input",
            "The input of the embedding is ids, which have no gradient: give target_layer, or leave this out.",
        )
    for name in ("attributed_fn_args", "step_scores_args"):
        if (
            getattr(request, name).get("skip_special_tokens", request.skip_special_tokens)
            != request.skip_special_tokens
        ):
            yield _at(
                f"/{name}/skip_special_tokens",
                "The contrast is encoded as the text is: set skip_special_tokens of the request itself.",
            )
    if not method.has_scores and attribution_args:
        yield _at("/attribution_args", f"{method.name} computes no attribution and takes no arguments.")


def _attributed_fn_refusals(
    request: AttributionRequest, method: Method, attributed: StepFunction
) -> Iterator[ProblemItem]:
    forced = request.attributed_fn_args.get("contrast_force_inputs", False)
    if attributed.traits.reads is Reads.ONE_ROW and request.attribution_args.get("perturbations_per_eval", 1) > 1:
        yield _at(
            "/attribution_args/perturbations_per_eval",
            f"{attributed.name} counts the tokens of one row only: leave out perturbations_per_eval.",
        )
    if not attributed.traits.is_differentiable and method.is_gradient:
        yield _at(
            "/attributed_fn",
            f"{attributed.name} counts tokens and has no gradient. Use occlusion, or report it as a step score.",
        )
    if attributed.traits.compares_forwards and not forced:
        yield _at(
            "/attributed_fn_args/contrast_force_inputs",
            f"{attributed.name} compares two forwards: set contrast_force_inputs to true to attribute it.",
        )
    if method.is_layer and (attributed.is_contrastive or attributed.traits.draws_dropout):
        yield _at(
            "/attributed_fn",
            f"{attributed.name} runs the model once more within its forward, which a layer method would take for the "
            f"input's. Use {method.traits.without_layer or 'a method without a layer'}.",
        )
    elif forced and attributed.is_contrastive and method.traits.compares_activations:
        yield _at(
            "/attributed_fn_args/contrast_force_inputs",
            f"{method.name} compares the activations of one forward with its baseline's; the contrast's own forward "
            "would take their place. Use integrated_gradients.",
        )


def _generation_errors(
    request: AttributionRequest,
    settings: Settings,
    defaults: GenerationConfig | None,
    *,
    is_encoder_decoder: bool | None,
) -> Iterator[ProblemItem]:
    """Yield an error for each argument of `generate` that cannot work; `defaults` are the model's own, where known."""
    values = request.generation_args
    if request.has_target:
        if values:
            names = ("generated_text", "generated_ids", "choices")
            given = next(name for name in names if getattr(request, name) is not None)
            yield _at("/generation_args", f"Nothing is generated if {given} is given: leave out generation_args.")
        return
    refused, accepted = generation_catalogue.REFUSED, generation_catalogue.parameters()
    for name in values.keys() & refused.keys():
        yield _at(f"/generation_args/{name}", f"{name} is not served: {refused[name]}.")
    rest = {name: value for name, value in values.items() if name not in refused}
    errors = list(_argument_errors("/generation_args", rest, accepted, "generate()", required=False))
    yield from errors
    if errors:
        return
    for name in ("max_new_tokens", "max_length"):
        value = values.get(name)
        if value is not None and not 1 <= value <= settings.max_new_tokens:
            errors.append(_at(f"/generation_args/{name}", f"{name} must be between 1 and {settings.max_new_tokens}."))
    yield from errors
    if not errors:
        limits = generation_catalogue.GenerationLimits.of(settings)
        yield from _contradictions(typed(rest, accepted), defaults, limits, is_encoder_decoder=is_encoder_decoder)


def _contradictions(
    values: Arguments,
    defaults: GenerationConfig | None,
    limits: generation_catalogue.GenerationLimits,
    *,
    is_encoder_decoder: bool | None,
) -> Iterator[ProblemItem]:
    try:
        config = generation_catalogue.effective(defaults or GenerationConfig(), values)
    except (ValueError, TypeError, AttributeError) as error:
        yield _at("/generation_args", str(error).splitlines()[0])
        return
    for name, reason in generation_catalogue.contradictions(config, limits, is_encoder_decoder=is_encoder_decoder):
        if name == "min_new_tokens" and not {"min_new_tokens", "max_new_tokens"} <= values.keys():
            continue  # a default length, which the job names in a warning
        if name in values:
            yield _at(f"/generation_args/{name}", reason)
        else:
            yield _at("/generation_args", generation_catalogue.of_the_model(name, reason))


def _template_errors(request: AttributionRequest) -> Iterator[ProblemItem]:
    reserved = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys()
    for name in request.chat_template_args.keys() & (reserved - {"tools", "documents"}):
        yield _at(f"/chat_template_args/{name}", f"{name} is set by the service; variables of the template go here.")


def _limit_errors(
    request: AttributionRequest, attribution_args: Arguments, settings: Settings
) -> Iterator[ProblemItem]:
    if request.count > settings.max_inputs:
        yield _at("/input_text", f"A job takes at most {settings.max_inputs} texts; send several jobs.")
    for pointer, values in (
        ("/attribution_args", attribution_args),
        ("/attributed_fn_args", request.attributed_fn_args),
        ("/step_scores_args", request.step_scores_args),
    ):
        for name in STEP_COUNTS:
            value = values.get(name)
            if isinstance(value, int) and not 1 <= value <= max(
                settings.max_n_steps, 3000 * (name == "max_probe_steps")
            ):
                yield _at(f"{pointer}/{name}", f"{name} must be between 1 and {settings.max_n_steps}.")
    for pointer, values in (
        ("/attributed_fn_args", request.attributed_fn_args),
        ("/step_scores_args", request.step_scores_args),
    ):
        if values.get("n_mcd_steps") == 1:
            yield _at(f"{pointer}/n_mcd_steps", "n_mcd_steps must be at least 2: one draw has no spread.")
    for name in BATCH_SIZES:
        value = attribution_args.get(name)
        if isinstance(value, int) and value < 1:
            yield _at(f"/attribution_args/{name}", f"{name} must be at least 1.")


def pointer(*names: str) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{_escape(name)}" for name in names)


def _at(pointer: str, detail: str) -> ProblemItem:
    return ProblemItem(pointer=pointer, detail=detail)


def _unknown(pointer: str, what: str, name: str, known: Iterable[str]) -> ProblemItem:
    names = list(known)
    return _at(pointer, f"There is no {what} {name!r}{did_you_mean(name, names)}. There are: {', '.join(names)}.")


def _accepted(parameters: dict[str, Any]) -> str:
    return f"It takes: {', '.join(parameters)}." if parameters else "It takes no arguments."


def _escape(name: str) -> str:
    """A name as a JSON pointer's token (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")

"""The options of the command `attribution`, named like those of `inseq attribute`, and the request made from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])
_EACH = "with several methods, one file each: NAME.METHOD.SUFFIX"


# Kinds of options


class Values(click.Option):
    """An option that takes one or more values after its name: `--methods saliency lime`. Needs `Command`."""

    def __init__(self, names: Sequence[str], **more: Any) -> None:
        super().__init__(names, **more | {"multiple": True})


class Command(click.Command):
    """A command that accepts several values after the name of a `Values` option.

    click itself requires `--methods saliency --methods lime`, so the name is repeated before click parses.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the names of `Values` options, then parse. Returns the arguments that are left."""
        known = {name for each in self.params for name in each.opts}
        repeatable = {name for each in self.params if isinstance(each, Values) for name in each.opts}
        repeated: list[str] = []
        name = None
        for argument in args:
            if _is_option(argument, known):
                name = argument if _underscored(argument) in repeatable else None
                repeated.append(argument)
            elif name is None or repeated[-1] == name:
                repeated.append(argument)
            else:
                repeated += [name, argument]
        return super().parse_args(ctx, repeated)


def _is_option(argument: str, known: set[str]) -> bool:
    """Whether an argument is an option. Texts with spaces and negative numbers are values, as in argparse."""
    if _underscored(argument.partition("=")[0]) in known or argument[:2] in known:
        return True
    is_value = argument == "-" or " " in argument or re.fullmatch(r"-\d*\.?\d+", argument)
    return argument.startswith("-") and not is_value


def _underscored(name: str) -> str:
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


class _JsonObject(click.ParamType[dict[str, Any]]):
    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.fail(f'{value!r} is not a JSON object, such as {{"n_samples": 20}}', param, ctx)
        return found


class _NumberOr(click.ParamType[int | str]):
    """A whole number, or one word."""

    name = "number"

    def __init__(self, word: str) -> None:
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return self._word if value == self._word else click.INT(value, param, ctx)


def _tag(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _flag(*names: str, text: str) -> Callable[[Function], Function]:
    """`--name` and `--name true` mean true, `--name false` means false; without the option the server decides."""
    return click.option(*names, type=click.BOOL, is_flag=False, flag_value=True, metavar="[true|false]", help=text)


def _all_of(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Add several options, in this order of the help."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


# Groups of options

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")

tag_filter = click.option("--tag", multiple=True, metavar="NAME[:VALUE]", help="Repeat it: all tags must match.")

view_options = _all_of(
    click.option("--attribution_aggregators", cls=Values, metavar="NAME...", help="In order, as in: subwords vnorm."),
    _flag("--normalize_attributions", text="Scale the scores of each generated token to a sum of 1."),
    click.option("--hide_attributions", "--hide", is_flag=True, help="Print no table."),
    click.option(
        "--save_path", "-o", metavar="FILE", help=f"Save the result for inseq.FeatureAttributionOutput.load; {_EACH}."
    ),
    click.option("--viz_path", metavar="FILE", help=f"Save the heatmap as HTML; {_EACH}."),
    json_option,
)

_MAPPINGS = {
    "attribution_kwargs": "Arguments of the attribution method.",
    "attributed_fn_kwargs": "Arguments of the attributed function.",
    "step_scores_kwargs": "Arguments of the step scores.",
    "generation_kwargs": "Arguments of the generation.",
    "tokenizer_kwargs": "Languages of a translation model.",
}
_NUMBERS = {
    "internal_batch_size": "Rows of one forward pass.",
    "seed": "Seed of all random numbers.",
    "priority": "Among your own waiting jobs, those with a higher priority run first.",
}
_FLAGS = {
    "attribute_target": "Attribute to the generated prefix as well, at every step.",
    "include_eos_baseline": "Replace EOS in the baseline as well.",
    "output_step_attributions": "Include the attributions of each step in the result.",
    "reuse": "Return the stored result of an identical request, if there is one.",
}

request_options = _all_of(
    click.option("--model_name_or_path", "--model", "-m", required=True, help="A bundled model or a Hub id."),
    click.option("--attribution_method", "--method", "-a", default="saliency", show_default=True, metavar="METHOD"),
    click.option("--methods", cls=Values, metavar="METHOD...", help="Compare several methods on the same tokens."),
    click.option("--input_texts", "--input_text", "-i", cls=Values, required=True, metavar="TEXT..."),
    click.option(
        "--generated_texts", "--generated_text", "-g", cls=Values, metavar="TEXT...", help="Targets to force."
    ),
    click.option("--step_scores", cls=Values, metavar="FUNCTION...", help="Scores to report for each generated token."),
    click.option(
        "--attributed_fn", "-fn", metavar="FUNCTION", help="The function to attribute (default: probability)."
    ),
    *(click.option(f"--{name}", type=_JsonObject(), metavar="JSON", help=text) for name, text in _MAPPINGS.items()),
    click.option(
        "--n_steps",
        type=_NumberOr("auto"),
        metavar="N|auto",
        help="Interpolation steps, for integrated gradients and similar methods; auto: until the scores add up.",
    ),
    click.option(
        "--completeness_tolerance", type=float, metavar="X", help="With --n_steps auto: how far scores may be off."
    ),
    *(click.option(f"--{name}", type=int, metavar="N", help=text) for name, text in _NUMBERS.items()),
    *(
        _flag(f"--{name}", *(["--eos"] if name == "include_eos_baseline" else []), text=text)
        for name, text in _FLAGS.items()
    ),
    click.option("--start_pos", "-s", type=int, metavar="N", help="First target position to attribute."),
    click.option("--end_pos", "-e", type=int, metavar="N", help="Target position to stop before."),
    click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Precision of the model."),
    click.option(
        "--device", "--dev", type=click.Choice(["auto", "cpu"]), default="auto", help="The server's choice, or its CPU."
    ),
    click.option("--tag", multiple=True, type=_tag, metavar="NAME=VALUE", help="A tag, for finding the job again."),
    click.option("--detach", is_flag=True, help="Do not wait: print the job's id."),
)


# What the options mean


def request_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of the request, from the parameters of `attribute`; only those that were given."""
    texts, targets = given["input_texts"], given["generated_texts"]
    fields = {
        "model": given["model_name_or_path"],
        "method": None if given["methods"] else given["attribution_method"],
        "methods": list(given["methods"]) or None,
        "input_text": _one_or_all(texts),
        "generated_text": _one_or_all(targets) if targets else None,
        "step_scores": list(given["step_scores"]) or None,
        "attributed_fn": given["attributed_fn"],
        "attribution_args": given["attribution_kwargs"],
        "attributed_fn_args": given["attributed_fn_kwargs"],
        "step_scores_args": given["step_scores_kwargs"],
        "generation_args": given["generation_kwargs"],
        "tokenizer_args": given["tokenizer_kwargs"],
        "n_steps": given["n_steps"],
        "completeness_tolerance": given["completeness_tolerance"],
        "attr_pos_start": given["start_pos"],
        "attr_pos_end": given["end_pos"],
        "force_cpu": True if given["device"] == "cpu" else None,
        "tags": dict(given["tag"]) or None,
        **{name: given[name] for name in (*_FLAGS, *_NUMBERS, "dtype")},
    }
    return {name: value for name, value in fields.items() if value is not None}


def view_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The view options of the result, from the parameters of `attribute` or `show`; only those that were given."""
    fields = {
        "aggregator": list(given["attribution_aggregators"]) or None,
        "normalize": given["normalize_attributions"],
        "method": given.get("method"),  # of `show`
    }
    return {name: value for name, value in fields.items() if value is not None}


def _one_or_all(texts: tuple[str, ...]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else list(texts)

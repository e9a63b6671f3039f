"""The options of the command `attribution`, named like those of `inseq attribute`, and the request made from them."""

from __future__ import annotations

import json
from typing import Any, get_args

import click

from attribution_client.terminal import completion
from attribution_client.terminal.inputs import input_fields
from attribution_client.terminal.option_kinds import (
    Decorator,
    JsonListOr,
    JsonObject,
    NumberOr,
    Option,
    all_of,
    flag,
    option,
    section,
    values,
)
from attribution_schema.spans import SegmentUnit

_EACH = "with several methods, one file each: NAME.METHOD.SUFFIX"
_FILE = click.Path(allow_dash=True)


def _number(name: str, text: str, *, kind: type[int] | type[float] = int, metavar: str = "N") -> Any:
    return option(name, type=kind, metavar=metavar, help=text)


def _mapping(name: str, text: str) -> Any:
    return option(name, type=JsonObject(), metavar="JSON", help=text)


def _tag(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _span(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"text": text}
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is no JSON object: {error}") from None
    return found


# Groups of options

json_option = click.option("--json", "as_json", cls=Option, is_flag=True, help="Print JSON, for other programs.")

tag_filter = click.option(
    "--tag", cls=Option, multiple=True, metavar="NAME[:VALUE]", help="Repeat it: all tags must match."
)

request_options: Decorator[Any] = all_of(
    section(
        "Input",
        option(
            "--model_name_or_path",
            "--model",
            "-m",
            required=True,
            metavar="MODEL",
            shell_complete=completion.models,
            help="A bundled model, one of this server's, or a Hub id: see `attribution models`.",
        ),
        values(
            "--input_texts", "--input_text", "-i", metavar="TEXT...", help="The text, or several; - is standard input."
        ),
        values("--input_file", type=_FILE, metavar="FILE...", help="The text, or each text, is in a file."),
        option(
            "--messages",
            type=_FILE,
            metavar="FILE",
            help="A conversation, as a JSON list of messages; - is standard input.",
        ),
        option("--user", metavar="TEXT", help="A conversation of one question; - is standard input."),
        option("--system", metavar="TEXT", help="With --user: the instruction before it."),
        values(
            "--generated_texts",
            "--generated_text",
            "-g",
            metavar="TEXT...",
            help="The target, one for each text: it is attributed, and the model generates nothing. Behind a "
            "conversation it is the reply alone; - is standard input.",
        ),
        values("--generated_file", type=_FILE, metavar="FILE...", help="The target, or each target, is in a file."),
        values(
            "--choices",
            metavar="TEXT...",
            help="In place of a target: texts that might follow the input. The first is attributed against the others.",
        ),
        _mapping("--tokenizer_kwargs", "Languages of a translation model."),
        _mapping("--chat_template_kwargs", "Variables of the chat template."),
        flag("--skip_special_tokens", text="Encode texts without the tokenizer's special tokens."),
    ),
    section(
        "Generation", _mapping("--generation_kwargs", 'Arguments of the generation, such as {"max_new_tokens": 20}.')
    ),
    section(
        "Method",
        option(
            "--attribution_method",
            "--method",
            "-a",
            default="saliency",
            show_default=True,
            metavar="METHOD",
            shell_complete=completion.methods,
            help="See `attribution methods`.",
        ),
        values(
            "--methods",
            metavar="METHOD...",
            shell_complete=completion.methods,
            help="Compare several methods on the same tokens.",
        ),
        _mapping("--attribution_kwargs", "Arguments of the method; of several, under each one's name."),
        option(
            "--attributed_fn",
            "-fn",
            metavar="FUNCTION",
            shell_complete=completion.step_functions,
            help="The function to attribute (default: probability).",
        ),
        _mapping("--attributed_fn_kwargs", "Arguments of the attributed function."),
        option(
            "--n_steps",
            type=NumberOr("auto"),
            metavar="N|auto",
            help="Interpolation steps, for integrated gradients and similar methods; auto: until the scores add up.",
        ),
        _number("--completeness_tolerance", "With --n_steps auto: how far scores may be off.", kind=float, metavar="X"),
        option(
            "--segments",
            type=JsonListOr(get_args(SegmentUnit)),
            metavar="UNIT|JSON",
            help="Parts of the input, for perturbation methods and --attribution_aggregators segments: a unit such as "
            'sentences, or a list such as [{"name": "one", "text": "..."}].',
        ),
        flag("--attribute_target", text="Attribute to the generated prefix as well, at every step."),
        flag("--include_eos_baseline", "--eos", text="Replace EOS in the baseline as well."),
        option(
            "--span",
            "spans",
            multiple=True,
            type=_span,
            metavar="TEXT|JSON",
            help="A part of the answer to attribute as a whole, by its text or as in "
            '\'{"name": "answer", "after": "</think>"}\'; {} is all of it. Repeat it for more.',
        ),
        _mapping("--trace", 'From one --span through another: {"from": "answer", "through": "chain", "mode": "span"}.'),
        option("--start_pos", "-s", type=int, metavar="N", help="First target position to attribute."),
        option("--end_pos", "-e", type=int, metavar="N", help="Target position to stop before."),
    ),
    section(
        "Scores",
        values(
            "--step_scores",
            metavar="FUNCTION...",
            shell_complete=completion.step_functions,
            help="Scores to report for each generated token, such as probability.",
        ),
        _mapping("--step_scores_kwargs", "Arguments of the step scores."),
        _number("--candidates", "How many of the likeliest tokens to report for each generated one (default: 5)."),
        flag("--output_step_attributions", text="Include the attributions of each step in the result."),
        flag("--clean_special_chars", text="Leave the tokenizer's marks out of the raw tokens."),
    ),
    section(
        "Computation",
        option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Precision of the model."),
        option(
            "--device",
            "--dev",
            type=click.Choice(["auto", "cpu"]),
            default="auto",
            help="The server's choice, or its CPU.",
        ),
        option(
            "--engine",
            type=click.Choice(["auto", "inseq", "single_pass", "masking"]),
            help="Inseq's own loop, or the single pass; by default the faster one that gives Inseq's numbers.",
        ),
        flag("--corrections", text="false: Inseq's own numbers, also where they are wrong."),
        _number("--internal_batch_size", "Rows of one forward pass."),
        _number("--seed", "Seed of all random numbers."),
    ),
    section(
        "Job",
        option("--tag", multiple=True, type=_tag, metavar="NAME=VALUE", help="A tag, for finding the job again."),
        _number("--priority", "Among your own waiting jobs, those with a higher priority run first."),
        _number("--timeout_seconds", "The longest time that the job may run.", kind=float, metavar="SECONDS"),
        option("--name", metavar="TEXT", help="A short name of the job."),
        option("--notes", metavar="TEXT", help="What to remember of the job."),
        option("--webhook", metavar="URL", help="Where the server posts the job when it has ended."),
        values(
            "--webhook_events",
            type=click.Choice(["completed", "failed", "cancelled"]),
            metavar="END...",
            help="With --webhook: the ends that are posted (default: all).",
        ),
        flag("--reuse", text="Return the stored result of an identical request, if there is one."),
    ),
)

detach_option = section("Job", option("--detach", is_flag=True, help="Do not wait: print the job's id."))

view_options: Decorator[Any] = section(
    "View",
    values(
        "--attribution_aggregators",
        metavar="NAME...",
        shell_complete=completion.aggregators,
        help="In order, as in: subwords vnorm.",
    ),
    flag("--normalize_attributions", text="Scale the scores of each generated token to a sum of 1."),
    option(
        "--top",
        type=click.IntRange(min=0),
        metavar="K",
        show_default=False,
        help="Print the K strongest tokens of each generated token; 0: the whole table. By default the table, or the 3 "
        "strongest where it is wider than the terminal.",
    ),
    option("--hide_attributions", "--hide", is_flag=True, help="Print no scores."),
    option(
        "--save_path",
        "-o",
        type=click.Path(),
        metavar="FILE",
        help=f"Save the result for inseq.FeatureAttributionOutput.load; {_EACH}.",
    ),
    option("--viz_path", type=click.Path(), metavar="FILE", help=f"Save the heatmap as HTML; {_EACH}."),
    option("--json", "as_json", is_flag=True, help="Print JSON, for other programs."),
)


trace_options: Decorator[Any] = section(
    "Trace",
    option(
        "--from",
        "from_",
        required=True,
        metavar="SPAN",
        help="Where it begins, such as the answer: 19:20, text:WORDS, after:WORDS, between:WORDS,WORDS, or the name of "
        "a span of the request.",
    ),
    option(
        "--through",
        metavar="SPAN",
        help="What it leads through, such as the reasoning (default: all generated before).",
    ),
    option("--hops", type=NumberOr("all"), metavar="N|all", help="How often it may pass through it (default: all)."),
    flag("--without_template", text="Give no share to special tokens and those of the chat template."),
    option("--sequence", type=click.IntRange(min=0), metavar="N", help="The number of one text, counted from 0."),
    option("--method", metavar="METHOD", shell_complete=completion.methods, help="Of a comparison: the method."),
    values(
        "--attribution_aggregators",
        metavar="NAME...",
        shell_complete=completion.aggregators,
        help="How scores are aggregated first, in order, as in: sentences.",
    ),
    option(
        "--top", type=click.IntRange(min=0), metavar="K", help="Print the K strongest tokens (default: 10); 0: all."
    ),
    option("--viz_path", type=click.Path(), metavar="FILE", help="Save the trace as HTML."),
    option("--json", "as_json", is_flag=True, help="Print JSON, for other programs."),
)

method_of_comparison = section(
    "View",
    option(
        "--method", metavar="METHOD", shell_complete=completion.methods, help="Of a comparison: show only this method."
    ),
)


# What the options mean

_SAME_NAME = (
    "attribute_target",
    "include_eos_baseline",
    "skip_special_tokens",
    "clean_special_chars",
    "output_step_attributions",
    "reuse",
    "corrections",
    "internal_batch_size",
    "candidates",
    "seed",
    "priority",
    "timeout_seconds",
    "name",
    "notes",
    "webhook",
    "trace",
    "attributed_fn",
    "segments",
    "n_steps",
    "completeness_tolerance",
    "dtype",
    "engine",
)
_OTHER_NAME = {
    "attribution_kwargs": "attribution_args",
    "attributed_fn_kwargs": "attributed_fn_args",
    "step_scores_kwargs": "step_scores_args",
    "generation_kwargs": "generation_args",
    "tokenizer_kwargs": "tokenizer_args",
    "chat_template_kwargs": "chat_template_args",
    "start_pos": "attr_pos_start",
    "end_pos": "attr_pos_end",
    "model_name_or_path": "model",
}


def request_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of the request, from the parameters of `attribute`; only those that were given.

    Raises `click.UsageError` for an input that is missing, cannot be read, or is given twice.
    """
    fields = {
        "method": None if given["methods"] else given["attribution_method"],
        "methods": list(given["methods"]) or None,
        "step_scores": list(given["step_scores"]) or None,
        "force_cpu": True if given["device"] == "cpu" else None,
        "tags": dict(given["tag"]) or None,
        "choices": list(given["choices"]) or None,
        "spans": list(given["spans"]) or None,
        "webhook_events": list(given["webhook_events"]) or None,
        **{name: given[name] for name in _SAME_NAME},
        **{field: given[name] for name, field in _OTHER_NAME.items()},
        **input_fields(given),
    }
    return {name: value for name, value in fields.items() if value is not None}


def trace_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a trace and of its view, from the parameters of `trace`; only those that were given."""
    fields = {
        "trace": given["from_"],
        "through": given["through"],
        "hops": given["hops"],
        "without_template": given["without_template"],
        "sequence": given["sequence"],
        "method": given["method"],
        "aggregator": list(given["attribution_aggregators"]) or None,
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

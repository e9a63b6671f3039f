"""The terminal's options, named as those of `inseq attribute`, and the request that they make."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

_EACH = "; of several methods each in a file of its own: NAME.METHOD.SUFFIX"
_TRUE, _FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}


def parser() -> argparse.ArgumentParser:
    """`attribute`, `show`, `jobs`, `cancel`, `methods`; every option is also understood with hyphens."""
    made = argparse.ArgumentParser(
        prog="attribution",
        description="Attribution jobs from a terminal. The server is INSEQ_API_URL or http://localhost:8000, the API "
        "key INSEQ_API_KEY. Exit status: 0 done, 1 failed, 2 refused as it was asked, 130 interrupted.",
    )
    made.add_argument("--server", help="where the server is")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _attribute(commands.add_parser("attribute", help="submit a job, wait, and show what came out"))
    shown = commands.add_parser("show", help="a job: its result, or where it is")
    shown.add_argument("job_id")
    shown.add_argument("--method", help="of a comparison: whose result")
    _view(shown)
    jobs = commands.add_parser("jobs", help="the newest jobs")
    for name, text in (("status", "pending, running, completed, failed, cancelled"), ("model", ""), ("method", "")):
        jobs.add_argument(f"--{name}", help=text or f"of this {name} only")
    jobs.add_argument("--tag", action="append", help="NAME or NAME:VALUE; several must all hold")
    jobs.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    _json(jobs)
    cancelled = commands.add_parser("cancel", help="give jobs up")
    cancelled.add_argument("job_id", nargs="+")
    _json(cancelled)
    _json(commands.add_parser("methods", help="the attribution methods and their parameters"))
    return made


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Exits with 2 where they are wrong, as argparse does."""
    return parser().parse_args([_with_underscores(each) for each in arguments])


def request_fields(given: argparse.Namespace) -> dict[str, Any]:
    """The request of `attribute`, with only what was said."""
    texts, targets = given.input_texts, given.generated_texts
    fields = {
        "model": given.model_name_or_path,
        "method": None if given.methods else given.attribution_method,
        "methods": given.methods,
        "input_text": texts[0] if len(texts) == 1 else texts,
        "generated_text": targets and (targets[0] if len(targets) == 1 else targets),
        "step_scores": given.step_scores,
        "attributed_fn": given.attributed_fn,
        "attribution_args": given.attribution_kwargs,
        "attributed_fn_args": given.attributed_fn_kwargs,
        "step_scores_args": given.step_scores_kwargs,
        "generation_args": given.generation_kwargs,
        "tokenizer_args": given.tokenizer_kwargs,
        "attr_pos_start": given.start_pos,
        "attr_pos_end": given.end_pos,
        "force_cpu": True if given.device == "cpu" else None,
        "tags": dict(given.tag) if given.tag else None,
        **{name: getattr(given, name) for name in (*_FLAGS, *_NUMBERS, "dtype")},
    }
    return {name: value for name, value in fields.items() if value is not None}


def view_options(given: argparse.Namespace) -> dict[str, Any]:
    """How the result is aggregated."""
    options = {"aggregator": given.attribution_aggregators, "normalize": given.normalize_attributions}
    options["method"] = getattr(given, "method", None)  # of `show`
    return {name: value for name, value in options.items() if value is not None}


_FLAGS = {
    "attribute_target": "attribute the generated prefix too, at every step",
    "include_eos_baseline": "replace EOS by the baseline as well",
    "output_step_attributions": "keep the attributions of each step",
    "reuse": "answer from the stored result of the same request, if there is one",
}
_NUMBERS = {
    "n_steps": "interpolation steps of integrated gradients and its like",
    "internal_batch_size": "rows of one forward pass",
    "seed": "seed of every random draw",
    "priority": "among one's own waiting jobs the higher comes first",
}
_MAPPINGS = {
    "attribution_kwargs": "arguments of the attribution method, as JSON",
    "attributed_fn_kwargs": "arguments of the attributed function, as JSON",
    "step_scores_kwargs": "arguments of the step scores, as JSON",
    "generation_kwargs": "arguments of generation, as JSON",
    "tokenizer_kwargs": "languages of a translation model, as JSON",
}


def _attribute(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model_name_or_path", "--model", "-m", required=True, help="a bundled model or a Hub id")
    sub.add_argument("--attribution_method", "--method", "-a", default="saliency", help="(default: saliency)")
    sub.add_argument("--methods", nargs="+", metavar="METHOD", help="instead: several, compared on the same tokens")
    sub.add_argument("--input_texts", "--input_text", "-i", nargs="+", required=True, metavar="TEXT")
    sub.add_argument("--generated_texts", "--generated_text", "-g", nargs="+", metavar="TEXT", help="forced targets")
    sub.add_argument("--step_scores", nargs="+", metavar="FUNCTION", help="reported for each generated token")
    sub.add_argument("--attributed_fn", "-fn", metavar="FUNCTION", help="what is attributed (default: probability)")
    for name, text in _MAPPINGS.items():
        sub.add_argument(f"--{name}", type=_mapping, metavar="JSON", help=text)
    for name, text in _NUMBERS.items():
        sub.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in _FLAGS.items():
        more = ["--eos"] if name == "include_eos_baseline" else []
        sub.add_argument(f"--{name}", *more, type=_flag, nargs="?", const=True, metavar="true|false", help=text)
    sub.add_argument("--start_pos", "-s", type=int, metavar="N", help="first target position to attribute")
    sub.add_argument("--end_pos", "-e", type=int, metavar="N", help="target position to stop before")
    sub.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="precision of weights and scores")
    sub.add_argument(
        "--device", "--dev", choices=("auto", "cpu"), default="auto", help="the server's choice, or its CPU"
    )
    sub.add_argument("--tag", action="append", type=_tag, metavar="NAME=VALUE", help="for finding the job again")
    sub.add_argument("--detach", action="store_true", help="do not wait: print the job's id")
    _view(sub)


def _view(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--attribution_aggregators", nargs="+", metavar="NAME", help="in order, e.g. subwords vnorm")
    sub.add_argument(
        "--normalize_attributions", type=_flag, nargs="?", const=True, metavar="true|false", help="sum to 1 or not"
    )
    sub.add_argument("--hide_attributions", "--hide", action="store_true", help="print no table")
    sub.add_argument("--save_path", "-o", metavar="FILE", help=f"save for inseq.FeatureAttributionOutput.load{_EACH}")
    sub.add_argument("--viz_path", metavar="FILE", help=f"save the heatmap as HTML{_EACH}")
    _json(sub)


def _json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print JSON, for other programs")


def _with_underscores(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object, such as {{"n_samples": 20}}')
    return found


def _tag(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value

"""The keywords of the client's calls: the fields of a request and the options of a view, with their types.

`AttributionRequest` and `ViewOptions` say what each means, and a test holds these types to theirs. Type checkers and
editors read them from `**fields: Unpack[RequestFields]`, notebooks from the signature that `listed` makes; any other
name is refused before something is sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict, TypeVar

from attribution_schema.did_you_mean import did_you_mean
from attribution_schema.spans import TextSelection

# A span of the generated text: `"19:20"`, `"text:milk"`, `"after:</think>"`, `"between:<think>,</think>"`, the name of
# one of the request's spans, its positions as a pair, or what a `TextSelection` has.
SpanOf = str | tuple[int, int] | Mapping[str, Any] | TextSelection
Function = TypeVar("Function", bound=Callable[..., Any])


class TextPart(TypedDict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ToolFunction(TypedDict, total=False):
    """The function that a tool call names."""

    name: Required[str]
    arguments: dict[str, Any] | str


class ToolCall(TypedDict, total=False):
    """A call of a tool in an assistant's message."""

    id: str | None
    type: Literal["function"]
    function: Required[ToolFunction]


class Message(TypedDict, total=False):
    """One turn of a conversation: `{"role": "user", "content": "Why is the sky blue?"}`."""

    role: Required[str]
    content: str | list[TextPart] | None
    name: str | None
    tool_calls: list[ToolCall] | None
    tool_call_id: str | None


class TokenizerArguments(TypedDict, total=False):
    """Languages of a multilingual translation model."""

    src_lang: str | None
    tgt_lang: str | None


class _TextSelection(TypedDict, total=False):
    """A part of a text."""

    name: str | None
    start: int | None
    end: int | None
    text: str | None
    after: str | None
    between: Sequence[str] | None
    characters: Sequence[int] | None
    occurrence: int | None


class Span(_TextSelection, total=False):
    """A part of the target: `{"name": "answer", "after": "</think>"}`, or `{}` for all of it."""

    contrast: str | None


class Segment(_TextSelection, total=False):
    """A part of the input: `{"name": "passage 1", "text": "Anna likes tea."}`."""

    pinned: bool


Trace = TypedDict(
    "Trace",
    {
        "from": Required[str],
        "through": str | None,
        "hops": int | Literal["all"],
        "mode": Literal["exact", "span"],
    },
    total=False,
)


class MoreFields(TypedDict, total=False):
    """The fields of a request beside model, methods and text."""

    # One conversation or several. So written, a type checker knows the type of the dictionaries in a list.
    messages: Sequence[Message | Sequence[Message]] | None
    generated_text: str | list[str] | None
    generated_ids: list[list[int]] | None
    choices: list[str] | None
    spans: list[Span] | None
    trace: Trace | None
    step_scores: list[str]
    candidates: int
    attributed_fn: str | None
    segments: list[Segment] | Literal["words", "sentences", "lines", "paragraphs", "messages"] | None
    attribution_args: dict[str, Any]
    attributed_fn_args: dict[str, Any]
    step_scores_args: dict[str, Any]
    generation_args: dict[str, Any]
    tokenizer_args: TokenizerArguments
    chat_template_args: dict[str, Any]
    n_steps: int | Literal["auto"] | None
    completeness_tolerance: float | None
    internal_batch_size: int | None
    attr_pos_start: int | None
    attr_pos_end: int | None
    attribute_target: bool
    include_eos_baseline: bool
    skip_special_tokens: bool
    clean_special_chars: bool
    output_step_attributions: bool
    force_cpu: bool
    dtype: Literal["float32", "float16", "bfloat16"]
    corrections: bool
    engine: Literal["auto", "inseq", "single_pass", "masking"]
    timeout_seconds: float | None
    reuse: bool
    priority: int
    name: str | None
    notes: str | None
    tags: dict[str, str]
    webhook: str | None
    webhook_events: list[Literal["completed", "failed", "cancelled"]] | None
    seed: int


class RequestFields(MoreFields, total=False):
    """All fields of a request."""

    model: str
    method: str | None
    methods: list[str] | None
    input_text: str | list[str] | None


class ViewFields(TypedDict, total=False):
    """The options of a result's view. `aggregator` and `aggregate_fn` may be lists, or names joined by commas."""

    aggregator: str | list[str]
    aggregate_fn: str | list[str | None]
    aggregator_args: dict[str, Any]
    normalize: bool | None
    granular: bool
    decode_tokens: bool
    table: Literal["attributions", "step_scores"]
    escape_formulas: bool
    style: Literal["heatmap", "inseq"]
    method: str | None
    partial: bool


class FileFields(ViewFields, total=False):
    """The options of a result as a file: those of a view, and of a trace."""

    trace: SpanOf | None
    through: SpanOf | None
    hops: int | Literal["all"]
    without_template: bool
    sequence: int | None


def check_request(fields: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a keyword that is no field of a request."""
    _check(fields, RequestFields, "a request has no field")


def check_view(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a keyword that is no option of a view."""
    _check(options, ViewFields, "a view has no option")


def check_file(options: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a keyword that is no option of a view or of a trace."""
    _check(options, FileFields, "a view has no option")


def _check(given: Mapping[str, Any], keywords: type, complaint: str) -> None:
    known = keywords.__annotations__
    for name in given:
        if name not in known:
            near = did_you_mean(name, known)
            raise TypeError(f"{complaint} {name!r}" + (near or f". There are: {', '.join(known)}"))


class _Omitted:
    """Shown as the default of a keyword that is not sent, so that the server's own default holds."""

    def __repr__(self) -> str:
        return "..."


def listed(keywords: type) -> Callable[[Function], Function]:
    """Have `help` and the completion of notebooks show each keyword of a function with `**more: Unpack[keywords]`."""

    def give_signature(function: Function) -> Function:
        signature = inspect.signature(function)
        shown = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shown += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_Omitted(), annotation=_written(kind))
            for name, kind in keywords.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return give_signature


def _written(annotation: Any) -> str:
    """An annotation as it is written above; there it is a string that is not evaluated yet."""
    return str(getattr(annotation, "__forward_arg__", annotation))

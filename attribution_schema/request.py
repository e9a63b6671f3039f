"""An attribution request, with the checks that need neither a model nor Inseq.

Methods, functions and their arguments are checked by `attribution.catalogue.checks`, against Inseq.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from attribution_schema.json_values import check_json
from attribution_schema.messages import ChatMessage, Messages
from attribution_schema.open_enum import TOLERANT, OpenEnum, keep_unknown
from attribution_schema.spans import MAX_CHOICES, MAX_SEGMENTS, MAX_SPANS, Segment, SegmentUnit, Span, Trace
from attribution_schema.webhook import WebhookEnd, WebhookUrl

# `name`, `org/name` or a `.gguf` file in either, optionally `@revision`, and optionally `+` and the same for an
# adapter: never a path. Each part starts with a letter or digit and has no two dots in a row, so neither `..` nor a
# leading slash can be written.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
_MODEL = rf"{_NAME}(?:/{_NAME}(?:/{_NAME}\.gguf)?)?(?:@{_NAME})?"
MODEL_NAME_PATTERN = rf"^{_MODEL}(?:\+{_MODEL})?$"
METHOD_ALIASES = {"deep_lift": "deeplift"}

_IF_EMPTY = {
    "input_text": "must not be empty: write the text to attribute",
    "generated_text": "must not be empty: write what the model is to have generated, or leave generated_text out",
}


def _is_not_empty(value: str | list[str], info: ValidationInfo) -> str | list[str]:
    """Refuse a text without characters and a list without texts. Raises `ValueError` with what to do instead."""
    if not value and info.context is not TOLERANT:
        raise ValueError(_IF_EMPTY[info.field_name or ""])
    return value


def _kind_of_texts(value: Any) -> str:
    return "list[Text]" if isinstance(value, list | tuple) else "str"


Text = Annotated[str, AfterValidator(_is_not_empty), Field(json_schema_extra={"minLength": 1})]
# The member of the union is chosen by the value's type, so that a wrong value has one error and not one for each.
Texts = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], AfterValidator(_is_not_empty), Field(json_schema_extra={"minItems": 1}), Tag("list[Text]")],
    Discriminator(_kind_of_texts),
]
Arguments = dict[str, Any]
TagName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
TagValue = Annotated[str, StringConstraints(max_length=256)]
MAX_TAGS = 16
EmptyAsNone = AfterValidator(lambda text: text or None)
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), EmptyAsNone]
Notes = Annotated[str, StringConstraints(max_length=20_000), EmptyAsNone]
TokenId = Annotated[int, Field(ge=0)]
MethodName = Annotated[str, StringConstraints(max_length=100)]


def _kind_of_segments(value: Any) -> str:
    return "str" if isinstance(value, str) else "list[Segment]"


def _has_names_of_its_own(segments: list[Segment], info: ValidationInfo) -> list[Segment]:
    """Refuse two segments of one name. Raises `ValueError`."""
    names = [each.name for each in segments if each.name is not None]
    if len(set(names)) < len(names) and info.context is not TOLERANT:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two segments are called {twice!r}: give each a name of its own")
    return segments


Segments = Annotated[
    Annotated[
        list[Segment],
        Field(min_length=1, max_length=MAX_SEGMENTS),
        AfterValidator(_has_names_of_its_own),
        Tag("list[Segment]"),
    ]
    | Annotated[SegmentUnit, WrapValidator(keep_unknown), Tag("str")],
    Discriminator(_kind_of_segments),
]


class Engine(OpenEnum):
    """The engine that computes the scores."""

    AUTO = "auto"  # the single pass if it qualifies and a probe agreed with Inseq's loop, else the loop
    INSEQ = "inseq"  # Inseq's own loop over the generated tokens
    SINGLE_PASS = "single_pass"  # noqa: S105 - no password; one forward for all tokens, or a refusal
    MASKING = "masking"  # forwards with masked parts of the input: that of the methods which Inseq does not have


class TokenizerArguments(BaseModel):
    """Languages of a multilingual translation model, by the tokenizer's own codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    src_lang: str | None = Field(None, max_length=50, examples=["eng_Latn"])
    tgt_lang: str | None = Field(None, max_length=50, examples=["fra_Latn"])


class AttributionRequest(BaseModel):
    """One attribution job. Unknown fields are refused, so that a typo is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "model": "lookup-gpt2",
                    "method": "input_x_gradient",
                    "input_text": "Anna likes tea. Ben likes milk. Anna likes",
                    "step_scores": ["probability", "logit"],
                }
            ]
        },
    )

    model: Annotated[
        str,
        StringConstraints(pattern=MODEL_NAME_PATTERN, max_length=200),
        Field(
            description="A bundled model, a Hub id (`name` or `org/name`, optionally `@revision`), or a local name; "
            "`base+adapter` for a PEFT adapter on another base than its own; `folder/file.gguf` for one GGUF file."
        ),
    ]
    methods: Annotated[list[MethodName], Field(min_length=2, max_length=16)] | None = Field(
        None,
        description="Instead of `method`: a comparison of several on the same tokens, generated once. "
        "`attribution_args` then has a method's arguments under its name.",
    )
    method: MethodName | None = Field(
        None,
        validate_default=True,
        description="An identifier of `inseq.list_feature_attribution_methods()`; or `methods`.",
    )
    messages: Messages | None = Field(
        None,
        description="Instead of `input_text`: a conversation or several, rendered by the tokenizer's own chat "
        "template. One that ends with the assistant's turn is continued.",
    )
    input_text: Texts | None = Field(None, validate_default=True, description="The text or texts to attribute.")
    generated_text: Texts | None = Field(
        None,
        description="The target, for constrained decoding: one per input. For a decoder-only model it starts with the "
        "input; behind messages it is the assistant's reply alone. Without it the model generates.",
    )
    generated_ids: list[Annotated[list[TokenId], Field(min_length=1)]] | None = Field(
        None,
        description="Instead of `generated_text`: the target's token ids, one list for each input, as `target` of a "
        "result has them: from the first token of the prompt, or of the decoder. They are attributed as they are.",
    )
    choices: Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)] | None = Field(
        None,
        description="Instead of `generated_text`: texts of which each might follow the input, of any length. The first "
        "is attributed: its probability as a whole, or its margin over each of the others.",
    )
    spans: Annotated[list[Span], Field(min_length=1, max_length=MAX_SPANS)] | None = Field(
        None,
        description="Parts of the target to attribute as wholes, instead of its tokens: each has one column of scores.",
    )
    trace: Trace | None = Field(
        None,
        description="The way from one of `spans` through another one, such as a chain of thought, to the input. "
        "`exact`: the job attributes every token, and `results?trace=` reads it; `span`: a column for each hop.",
    )
    step_scores: list[str] = Field([], max_length=32, description="Step functions to report for each generated token.")
    attributed_fn: str | None = Field(
        None,
        max_length=100,
        description="The step function that is attributed; Inseq's default is `probability`. Of the methods that Inseq "
        "does not have, it is the logarithm of the probability.",
    )
    segments: Segments | None = Field(
        None,
        description="Parts of the input: a list of them, or a unit of text. Every result can be aggregated over them; "
        "perturbation methods take them as their features.",
    )
    candidates: int = Field(
        5,
        ge=0,
        le=20,
        description="How many of the likeliest next tokens to report for each generated token, with their "
        "probabilities; 0 for none.",
    )
    attribution_args: Arguments = Field({}, description="Arguments of the attribution method.")
    attributed_fn_args: Arguments = Field(
        {},
        description="Arguments of the attributed function. `contrast_targets` is as `generated_text` is: behind "
        "messages the assistant's reply alone; `contrast_ids` is as `generated_ids` is.",
    )
    step_scores_args: Arguments = Field({}, description="Arguments of the step score functions.")
    generation_args: Arguments = Field({}, description="Arguments of Transformers' `generate`, e.g. `max_new_tokens`.")
    tokenizer_args: TokenizerArguments = Field(
        TokenizerArguments(), description="Languages: `src_lang`, and `tgt_lang`, with whose token generation starts."
    )
    chat_template_args: Arguments = Field(
        {}, description="Variables for the chat template, e.g. `enable_thinking`; with `messages` only."
    )
    n_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description='Shorthand for `attribution_args.n_steps`. "auto" doubles the steps until the scores of every '
        "token sum to f(input) - f(baseline) within `completeness_tolerance`; `info.convergence` tells what it took.",
    )
    completeness_tolerance: float | None = Field(
        None,
        gt=0,
        le=1,
        description='With n_steps "auto": how far the scores of a token may be off, relative to '
        "their size (0.05 by default).",
    )
    internal_batch_size: int | None = Field(
        None, ge=1, description="Shorthand for `attribution_args.internal_batch_size`."
    )
    attr_pos_start: int | None = Field(None, ge=0, description="First target position to attribute, in tokens.")
    attr_pos_end: int | None = Field(None, ge=1, description="Target position to stop before, in tokens.")
    attribute_target: bool = Field(False, description="Attribute the target prefix too (encoder-decoder models).")
    include_eos_baseline: bool = Field(False, description="Replace EOS by the baseline as well.")
    skip_special_tokens: bool = Field(False, description="Encode texts without the tokenizer's special tokens.")
    clean_special_chars: bool = Field(False, description="Strip the tokenizer's marks (such as `▁`) from tokens.")
    output_step_attributions: bool = Field(False, description="Return the attributions of each step as well.")
    force_cpu: bool = Field(False, description="Run on the CPU even where there is a GPU.")
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], WrapValidator(keep_unknown)] = Field(
        "float32", description="Precision of weights and scores."
    )
    corrections: bool = Field(
        True, description="False gives Inseq's own numbers where it is wrong, for comparison; `info` says which."
    )
    engine: Engine = Field(
        Engine.AUTO,
        description="The engine: `inseq` is Inseq's own loop, `single_pass` has the same numbers many times faster "
        "where a model and a method allow it; `auto` takes the second where it is found to agree with the first.",
    )
    timeout_seconds: float | None = Field(
        None, gt=0, description="Longest time that the job may run; the server's own limit holds too."
    )
    reuse: bool = Field(
        False, description="Answer at once from the stored result of the same request, if there is one."
    )
    priority: int = Field(0, ge=-100, le=100, description="Order among one's own waiting jobs: the higher first.")
    name: Name | None = Field(None, description="A short name of the job. As notes and tags, it may be changed later.")
    notes: Notes | None = Field(None, description="What to remember of the job, in a text of any form.")
    tags: dict[TagName, TagValue] = Field(
        {}, max_length=MAX_TAGS, description="A small map of strings, to find jobs again."
    )
    webhook: WebhookUrl | None = Field(
        None,
        description="A URL to which the server posts the job when it has ended, signed (Standard Webhooks). The "
        "operator says to which hosts.",
        examples=["https://hooks.example.com/attribution"],
    )
    webhook_events: Annotated[list[WebhookEnd], Field(min_length=1, max_length=8)] | None = Field(
        None, description="The ends of the job that are posted to `webhook`: all by default."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of every random draw; the same seed gives the same numbers, whatever else runs.",
    )

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, data: Any, info: ValidationInfo) -> Any:
        """Refuse what JSON cannot carry, or what could be stored and not be read back."""
        if info.context is not TOLERANT:  # a newer server may allow more
            check_json(data, cls.__name__)
        return data

    @field_validator("methods")
    @classmethod
    def _resolve_aliases(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [METHOD_ALIASES.get(name, name) for name in value]

    @field_validator("method")
    @classmethod
    def _one_method_or_several(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "methods" in info.data and (value is None) == (info.data["methods"] is None):
            raise ValueError("give either method or methods")
        return None if value is None else METHOD_ALIASES.get(value, value)

    @field_validator("input_text")
    @classmethod
    def _one_kind_of_input(cls, value: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if "messages" in info.data and (value is None) == (info.data["messages"] is None):
            raise ValueError("give either input_text or messages")
        return value

    @model_validator(mode="after")
    def _has_a_webhook_for_its_events(self) -> AttributionRequest:
        if self.webhook is None and self.webhook_events is not None:
            raise ValueError("webhook_events is for webhook, which is missing")
        return self

    @model_validator(mode="after")
    def _fits_its_kind_of_input(self) -> AttributionRequest:
        if self.messages is None and self.chat_template_args:
            raise ValueError("chat_template_args are for messages")
        if self.messages is not None and self.skip_special_tokens:
            raise ValueError("skip_special_tokens would remove the special tokens of the chat template; leave it out")
        return self

    @model_validator(mode="after")
    def _one_target_per_input(self) -> AttributionRequest:
        if self.generated_text is not None and len(self.targets or ()) != self.count:
            raise ValueError(
                f"generated_text needs one text per input: {self.count} inputs, {len(self.targets or ())} targets"
            )
        given = [name for name in ("generated_text", "generated_ids", "choices") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give either {' or '.join(given)}")
        if self.choices is not None and self.spans is not None:
            raise ValueError("choices are attributed as wholes: leave out spans, or give spans with a contrast")
        if self.generated_ids is not None and len(self.generated_ids) != self.count:
            raise ValueError(
                f"generated_ids needs one list per input: {self.count} inputs, {len(self.generated_ids)} lists"
            )
        if None not in (start := self.attr_pos_start, end := self.attr_pos_end) and start >= end:  # type: ignore[operator]
            raise ValueError("attr_pos_start must be less than attr_pos_end")
        return self

    @property
    def method_names(self) -> list[str]:
        """The names of the methods, one or several."""
        return self.methods or [self.attribution_method]

    @property
    def attribution_method(self) -> str:
        """The method of a request that is not a comparison."""
        assert self.method is not None, "a comparison: see of_method"
        return self.method

    def of_method(self, name: str) -> AttributionRequest:
        """The request of one method of a comparison; the request itself if it is not a comparison."""
        if self.methods is None:
            return self
        arguments = self.attribution_args.get(name, {})
        return self.model_copy(update={"method": name, "methods": None, "attribution_args": arguments})

    @property
    def inputs(self) -> list[str]:
        """The input texts as a list; empty if the input is conversations."""
        return [self.input_text] if isinstance(self.input_text, str) else list(self.input_text or ())

    @property
    def conversations(self) -> list[list[ChatMessage]] | None:
        """The conversations as a list; None if the input is text."""
        if self.messages is None:
            return None
        return [self.messages] if isinstance(self.messages[0], ChatMessage) else list(self.messages)

    @property
    def count(self) -> int:
        """The number of inputs."""
        return len(self.conversations or self.inputs)

    @property
    def languages(self) -> dict[str, str]:
        """The languages that the request sets, by the tokenizer's argument names."""
        return self.tokenizer_args.model_dump(exclude_none=True)

    @property
    def has_target(self) -> bool:
        """Whether the request gives the targets; else the model generates them."""
        return any(each is not None for each in (self.generated_text, self.generated_ids, self.choices))

    @property
    def attributes_spans(self) -> bool:
        """Whether scores are those of spans of the target, and not of its tokens."""
        return self.choices is not None or (self.spans is not None and not self.traces_tokens)

    @property
    def traces_tokens(self) -> bool:
        """Whether spans are those of an exact trace, which needs the scores of the tokens."""
        return self.trace is not None and self.trace.mode == "exact"

    @property
    def targets(self) -> list[str] | None:
        """The texts of the targets, one for each input; None if the request gives none."""
        return [self.generated_text] if isinstance(self.generated_text, str) else self.generated_text

"""Texts and ids as Inseq's encodings, and the checks of them: lengths, positions, token boundaries.

Every check here needs a tokenizer, and so happens when the job runs. They raise `InputRejected` with advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel
from inseq.utils import format_input_texts

from attribution.model_cache.loading import LoadedModel
from attribution.text import chat, continuation
from attribution.text.languages import check_target_language
from attribution.text.sandbox import TextSandbox
from attribution.text.spans import TokenSpan, TracePlan
from attribution.text.step_labels import named_tokens
from attribution.text.turns import Turns
from models import AttributionRequest
from problems import InputRejected

# A tokenizer without a limit reports a very large number.
_NO_LIMIT = 10**9
_SHOWN_PARTS = 5  # of a text, in a warning
_WITHOUT_ENDING = (
    "Set skip_special_tokens to true: the tokenizer then adds no special tokens, at the beginning of texts neither."
)


@dataclass(frozen=True)
class Prompt:
    """One input."""

    text: str
    encoding: BatchEncoding  # [1, source_len]
    from_template: list[bool] | None = None  # for each token, whether a chat template added it
    turns: Turns | None = None  # of a conversation
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    """One input with its target."""

    prompt: Prompt
    forced: str | None  # the target's text, if the request gives it
    target: BatchEncoding  # [1, target_len]; for decoder-only models the prompt and what follows it
    first: int  # first target position that is attributed
    end: int  # the position behind the last one
    contrasts: Mapping[str, BatchEncoding] = field(default_factory=dict)  # that are not encoded as Inseq would
    contrast_ids: Mapping[int, int] = field(default_factory=dict)  # by the target position with which each is paired
    spans: tuple[TokenSpan, ...] = ()  # of the target, to attribute in place of its tokens
    trace: TracePlan | None = None  # whose hops the spans are

    @property
    def source(self) -> BatchEncoding:
        return self.prompt.encoding

    @property
    def steps(self) -> int:
        """The number of things to attribute: spans, or else tokens."""
        return len(self.spans) or self.end - self.first


def check_texts(request: AttributionRequest, sandbox: TextSandbox) -> None:
    """Check that the model's tokenizer handles every text that the request gives, within the limits of the sandbox.

    Conversations are checked when they are rendered. Raises `InputRejected` and `Cancelled`.
    """
    texts = [*request.inputs] if request.conversations is None else []
    contrasts = [
        each
        for arguments in (request.attributed_fn_args, request.step_scores_args)
        for key in ("contrast_targets", "contrast_sources")
        for each in _texts(arguments.get(key))
    ]
    targets = [*(request.targets or ()), *contrasts, *(request.choices or ())]
    specials = not request.skip_special_tokens
    sandbox.check_texts(
        [{"text": each, "add_special_tokens": specials} for each in [*texts, *targets]]
        + [{"text_target": each, "add_special_tokens": specials} for each in targets],
        request.languages,
    )


def _texts(value: object) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def read_input(
    loaded: LoadedModel, request: AttributionRequest, index: int, *, max_tokens: int, sandbox: TextSandbox
) -> tuple[Prompt, str | None]:
    """Input number `index` as a prompt, and the text of its forced target, None if the model generates it.

    Raises `InputRejected` for an input without tokens, one that is too long, or messages that the template refuses.
    """
    target = None if request.targets is None else request.targets[index]
    if request.conversations is not None:
        return _encode_conversation(loaded, request, index, max_tokens, sandbox), target
    model = loaded.model
    # With skip_special_tokens, Inseq also removes those that the text spells out.
    (text,), targets = format_input_texts(
        [request.inputs[index]], None if target is None else [target], request.skip_special_tokens, model.special_tokens
    )
    prompt = _encode_text(loaded, request, text, max_tokens)
    return prompt, None if targets is None else targets[0]


def _encode_text(loaded: LoadedModel, request: AttributionRequest, text: str, max_tokens: int) -> Prompt:
    """The input, tokenized as Inseq does it, after its tokens are counted: some tokenizers truncate silently."""
    model = loaded.model
    count = _count(model, text, as_targets=False, skip_special_tokens=request.skip_special_tokens)
    _check_length(loaded, count, "The input text", max_tokens)
    encoding = model.encode(
        [text],
        return_baseline=True,
        include_eos_baseline=request.include_eos_baseline,
        add_special_tokens=not request.skip_special_tokens,
    )
    prompt = Prompt(text, encoding)
    if encoding.input_ids.shape[1] < count:
        prompt.warnings.append("The text began with two BOS tokens, the tokenizer's and its own: one was left out.")
    _note_change(loaded, prompt, "the input text")
    return prompt


def _note_change(loaded: LoadedModel, prompt: Prompt, what: str) -> None:
    """Add a warning to the prompt if the tokenizer makes another text of it."""
    if loaded.model.is_encoder_decoder:
        prompt.warnings.extend(_unknown(loaded, what, prompt.text, as_target=False))
        return
    change = continuation.change_of(loaded.model.tokenizer, prompt.text)
    if change is not None:
        prompt.warnings.append(f"The tokenizer changes {what}: {change}. The tokens that it makes are attributed.")


def _unknown(loaded: LoadedModel, what: str, text: str, *, as_target: bool) -> list[str]:
    """A warning if the tokenizer has no token for a part of a text; empty otherwise."""
    parts = continuation.unknown_parts(loaded.model.tokenizer, text, as_target=as_target)
    if parts is None:
        return []
    shown = f" ({', '.join(map(repr, parts[:_SHOWN_PARTS]))})" if parts else ""
    unknown = loaded.model.tokenizer.unk_token
    return [f"The tokenizer has no token for parts of {what}{shown}: {unknown!r} stands for them, and is attributed."]


def _encode_conversation(
    loaded: LoadedModel, request: AttributionRequest, index: int, max_tokens: int, sandbox: TextSandbox
) -> Prompt:
    assert request.conversations is not None
    messages = [message.for_template() for message in request.conversations[index]]
    conversation = chat.render(loaded.model.tokenizer, messages, request.chat_template_args, sandbox)
    _check_length(loaded, conversation.ids.shape[1], "The conversation", max_tokens)
    encoding = from_ids(
        loaded.model, conversation.ids.to(loaded.model.device), include_eos_baseline=request.include_eos_baseline
    )
    prompt = Prompt(conversation.text, encoding, conversation.from_template, conversation.turns)
    _note_change(loaded, prompt, "the rendered conversation")
    prompt.warnings.extend(conversation.warnings)
    return prompt


def _check_length(loaded: LoadedModel, count: int, what: str, max_tokens: int) -> None:
    if count == 0:
        raise InputRejected(f"{what} has no tokens.")
    limit = min(_tokenizer_limit(loaded.model), loaded.limit or _NO_LIMIT, max_tokens)
    if count > limit:
        raise InputRejected(f"{what} has {count} tokens; at most {limit} are possible here. Shorten it.")


def encode_target(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    text: str,
    *,
    sandbox: TextSandbox,
    warnings: list[str],
) -> BatchEncoding:
    """A forced target ([1, target_len]): a whole text, or the reply to a conversation. Adds to `warnings`."""
    if request.conversations is not None and not loaded.model.is_encoder_decoder:
        return encode_reply(loaded, request, prompt, text, sandbox=sandbox, warnings=warnings)
    encoding = encode_whole_target(loaded, request, prompt, text)
    if loaded.model.is_encoder_decoder:
        warnings.extend(_unknown(loaded, "generated_text", text, as_target=True))
    else:
        change = continuation.change_behind(loaded.model.tokenizer, prompt.text, text)
        if change is not None:
            warnings.append(f"The tokenizer changes generated_text: {change}. The tokens that it makes are attributed.")
    return encoding


def encode_whole_target(loaded: LoadedModel, request: AttributionRequest, prompt: Prompt, text: str) -> BatchEncoding:
    """A target as Inseq tokenizes it ([1, target_len]); for a decoder-only model it begins with the prompt."""
    model, as_targets = loaded.model, bool(loaded.model.is_encoder_decoder)
    if as_targets:
        check_target_language(model.tokenizer)
    count = _count(model, text, as_targets=as_targets, skip_special_tokens=request.skip_special_tokens)
    check_target_length(loaded, count)
    encoding = model.encode(
        [text],
        as_targets=as_targets,
        return_baseline=True,
        include_eos_baseline=request.include_eos_baseline,
        add_special_tokens=not request.skip_special_tokens,
    )
    if as_targets:
        if encoding.input_ids.shape[1] <= 1:  # the start token alone
            raise InputRejected("generated_text has no tokens.")
        return encoding
    ids, prompt_ids = encoding.input_ids[0].tolist(), prompt.encoding.input_ids[0].tolist()
    if ids[: len(prompt_ids)] != prompt_ids:
        if ending := ending_of_texts(loaded, request):
            raise InputRejected(
                f"This model's tokenizer ends each text with {ending!r}, the input too, so that generated_text would "
                f"have to continue behind it. {_WITHOUT_ENDING}"
            )
        raise InputRejected(
            "generated_text does not tokenize to the input's tokens and more: the border between them falls inside a "
            "token. Move it to a token's border, such as before a space."
        )
    if len(ids) == len(prompt_ids):
        raise InputRejected("generated_text adds nothing to input_text: there is no token to attribute.")
    return encoding


def encode_reply(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    text: str,
    *,
    sandbox: TextSandbox,
    warnings: list[str],
    name: str = "generated_text",
) -> BatchEncoding:
    """The conversation's ids followed by those of the assistant's reply: together they spell both.

    Adds to `warnings`. `name`: the request's field, for messages. Raises `InputRejected` for a reply without tokens or
    one that is too long.
    """
    model, prompt_ids = loaded.model, prompt.encoding.input_ids
    texts = continuation.texts_to_tokenize(prompt.text, text)
    sandbox.check_texts([{"text": each, "add_special_tokens": False} for each in texts], {})
    reply = continuation.continued(model.tokenizer, prompt.text, prompt_ids[0].tolist(), text, name)
    if not reply.ids:
        raise InputRejected(f"{name} has no tokens.")
    warnings.extend(reply.warnings)
    check_target_length(loaded, prompt_ids.shape[1] + len(reply.ids), name)
    ids = torch.cat([prompt_ids, prompt_ids.new_tensor([reply.ids])], dim=1)
    return from_ids(model, ids, include_eos_baseline=request.include_eos_baseline)


def ending_of_texts(loaded: LoadedModel, request: AttributionRequest) -> str | None:
    """The special tokens that the tokenizer of a decoder-only model writes behind an input text; None if it does not.

    A conversation has those of its template.
    """
    tokenizer = loaded.model.tokenizer
    if loaded.model.is_encoder_decoder or request.skip_special_tokens or request.conversations is not None:
        return None
    ids, plain = (tokenizer("a", add_special_tokens=added, verbose=False).input_ids for added in (True, False))
    starts = (start for start in range(len(ids)) if plain and ids[start : start + len(plain)] == plain)
    behind = ids[next(starts, len(ids)) + len(plain) :]
    return continuation.spelled(tokenizer, behind) if behind else None


def ending_warning(loaded: LoadedModel, request: AttributionRequest) -> list[str]:
    """A warning if the model would generate behind the end of a text; empty otherwise."""
    ending = ending_of_texts(loaded, request)
    if ending is None:
        return []
    return [f"The tokenizer ends the input with {ending!r}, and the model generates behind that. {_WITHOUT_ENDING}"]


def check_target_length(loaded: LoadedModel, count: int, name: str = "generated_text") -> None:
    """Raise `InputRejected` for a target of more tokens than the model has positions."""
    limit = min(_tokenizer_limit(loaded.model), loaded.limit or _NO_LIMIT)
    if count > limit:
        raise InputRejected(f"{name} has {count} tokens; the model allows {limit}.")


def from_ids(
    model: HuggingfaceModel, ids: torch.Tensor, *, include_eos_baseline: bool, keep_first: bool = False
) -> BatchEncoding:
    """Ids ([1, length]) as the encoding that Inseq makes of a text, with its baseline.

    `keep_first`: the first is a decoder's start token, which Inseq keeps in the baseline.
    """
    unk, eos = model.tokenizer.unk_token_id, model.eos_token_id
    baseline = torch.full_like(ids, unk)
    if not include_eos_baseline:
        baseline = torch.where(ids == eos, ids, baseline)
    if keep_first:
        baseline[:, 0] = ids[:, 0]
    return BatchEncoding(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        input_tokens=[
            named_tokens(model.convert_ids_to_tokens(row, skip_special_tokens=False), row.tolist()) for row in ids
        ],
        baseline_ids=baseline,
    )


def check_positions(
    model: HuggingfaceModel,
    source: BatchEncoding,
    target: BatchEncoding,
    start: int | None,
    end: int | None,
    *,
    generated: bool,
) -> tuple[int, int]:
    """The target positions to attribute, [first, end).

    Raises `InputRejected` for positions outside the target, which Inseq would silently move or clamp.
    """
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

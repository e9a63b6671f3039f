"""Makes models compute the same logits from embeddings, which Inseq passes to them, as from token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import torch
from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel

from attribution.corrections.registry import Correction, Ledger, declare
from problems import UnsupportedByModel

EMBEDDINGS_SCALED_ONCE = declare(
    "embeddings_scaled_once",
    reason="MarianMT and Pegasus scale the decoder's input embeddings, which Inseq has already scaled: logits and "
    "scores are silently wrong.",
    remedy="The model does not scale input embeddings again.",
    proof="test_corrections_methods.py::test_embeddings_are_scaled_once",
)
DECODER_EMBEDDINGS = declare(
    "decoder_embeddings_of_its_own",
    reason="Inseq embeds targets with the encoder's embedding, even if the decoder has its own (some MarianMT models).",
    remedy="Targets are embedded with the decoder's embedding.",
    proof="test_corrections_methods.py::test_embeddings_are_scaled_once",
)
EMBEDDINGS_COPIED = declare(
    "embeddings_are_not_changed",
    reason="CTRL scales its input embeddings in place, which gradient methods cannot differentiate, and which changes "
    "the embeddings that Inseq uses again at the next step.",
    remedy="The model gets a copy of the embeddings.",
    proof="test_field_cases.py::test_embeddings_scaled_in_place",
)
HALF_PRECISION = declare(
    "half_precision_inputs",
    reason="lime, gradient_shap and discretized_integrated_gradients fail on bfloat16 or float16 weights: they create "
    "float32 inputs, or convert tensors to numpy, which has no bfloat16.",
    remedy="Inputs are float32 copies of the embeddings, cast to the model's dtype when the model is called.",
    proof="test_corrections_methods.py::test_half_precision",
)
# Relative to the largest logit: far above float rounding, far below a wrong scale.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EmbeddingsFix:
    """What to change so that a model computes the same logits from embeddings as from ids: nothing for most models."""

    scaled_twice: bool = False  # the decoder also scales input embeddings
    own_decoder: bool = False  # the decoder's embedding is not the encoder's
    copied: bool = False  # the model changes its input embeddings in place

    @property
    def corrections(self) -> list[Correction]:
        """The declared corrections that this fix applies."""
        return (
            [EMBEDDINGS_SCALED_ONCE] * self.scaled_twice
            + [DECODER_EMBEDDINGS] * self.own_decoder
            + [EMBEDDINGS_COPIED] * self.copied
        )

    @contextmanager
    def applied(self, model: HuggingfaceModel) -> Iterator[None]:
        """Change the model within the block; the caller holds its lock."""
        with ExitStack() as stack:
            if self.copied:
                stack.enter_context(_embeddings_as(model, torch.Tensor.clone))
            if self.scaled_twice:
                _scale_only_looked_up(model.get_decoder(), stack)
            if self.own_decoder:
                layer = embedding_of(model.get_decoder())
                # The attribute from which Inseq reads a decoder's own embedding, and whose output it scales.
                model.decoder_int_embeds = SimpleNamespace(indices_to_embeddings=layer)
                stack.callback(setattr, model, "decoder_int_embeds", None)
            yield


def embeddings_fix(model: HuggingfaceModel) -> EmbeddingsFix:
    """The fix for this model. Raises `UnsupportedByModel` if no fix makes its logits equal those from ids."""
    copied = _changes_its_input(model)
    for candidate in _candidates(model):
        fix = replace(candidate, copied=copied)
        with fix.applied(model):
            difference, scale = _difference(model)
        if difference <= _TOLERANCE * scale:
            return fix
    start = ""
    if model.is_encoder_decoder and model.bos_token_id == model.model.config.pad_token_id:
        start = " Its decoder starts with the padding token, which the model may leave out of the positions it counts."
    raise UnsupportedByModel(
        f"{type(model.model).__name__} computes other logits from its embeddings than from its token ids (off by "
        f"{difference:.2g} where they are about {scale:.2g}), so Inseq's scores for it would be wrong.{start}"
    )


def _candidates(model: HuggingfaceModel) -> Iterator[EmbeddingsFix]:
    yield EmbeddingsFix()
    if not model.is_encoder_decoder:
        return
    encoder, decoder = model.get_encoder(), model.get_decoder()
    own = embedding_of(encoder).weight is not embedding_of(decoder).weight
    yield EmbeddingsFix(own_decoder=own)
    if hasattr(decoder, "embed_scale"):
        yield EmbeddingsFix(scaled_twice=True, own_decoder=own)


def embedding_of(half: torch.nn.Module) -> torch.nn.Module:
    """The token embedding of an encoder or a decoder; not all of them have Transformers' getter."""
    found: torch.nn.Module = getattr(half, "embed_tokens", None) or half.get_input_embeddings()  # type: ignore[operator]
    return found


def _scale_only_looked_up(module: torch.nn.Module, stack: ExitStack) -> None:
    """Make a module scale the embeddings of ids, but not input embeddings, until the stack is closed."""
    scale = module.embed_scale

    def before(called: Any, _: Any, arguments: dict[str, Any]) -> None:
        called.embed_scale = scale if arguments.get("inputs_embeds") is None else 1.0

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    stack.callback(setattr, module, "embed_scale", scale)
    stack.callback(handle.remove)


@contextmanager
def cast_to_half(model: HuggingfaceModel) -> Iterator[None]:
    """Make the network cast float32 input embeddings to its own dtype within the block."""
    dtype = model.model.dtype
    with _embeddings_as(model, lambda embeddings: embeddings.to(dtype)):
        yield


@contextmanager
def _embeddings_as(model: HuggingfaceModel, made: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the block, the network gets what `made` makes of its input embeddings."""

    def before(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name in ("inputs_embeds", "decoder_inputs_embeds"):
            if named.get(name) is not None:
                named[name] = made(named[name])
        return arguments, named

    handle = model.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def float32_vocabulary(model: HuggingfaceModel) -> Iterator[None]:
    """Give Inseq the vocabulary's embeddings in float32 while it loads a method that searches neighbours in them."""
    weight = model.get_embedding_layer().weight
    model.get_embedding_layer = lambda: SimpleNamespace(weight=weight.float())
    try:
        yield
    finally:
        del model.get_embedding_layer


def ordinary_ids(model: HuggingfaceModel, count: int = 4) -> torch.Tensor:
    """So many ordinary tokens: [1, count]."""
    size = int(model.model.get_input_embeddings().num_embeddings)
    # Not the pad token: some families count positions from it, and embeddings do not show which token is padding.
    special = {*model.special_tokens_ids, model.model.config.pad_token_id}
    return torch.tensor([[index for index in range(size) if index not in special][:count]], device=model.device)


@torch.no_grad()
def _changes_its_input(model: HuggingfaceModel) -> bool:
    """Whether a forward changes the input embeddings that it is given."""
    ids = ordinary_ids(model)
    given = {"inputs_embeds": model.embed_ids(ids).clone()}
    if model.is_encoder_decoder:
        given["decoder_inputs_embeds"] = model.embed_ids(ids, as_targets=True).clone()
    before = [each.clone() for each in given.values()]
    model.model(**given, attention_mask=torch.ones_like(ids), use_cache=False)
    return not all(map(torch.equal, given.values(), before))


@torch.no_grad()
def _difference(model: HuggingfaceModel) -> tuple[float, float]:
    """`_logits_difference` for four ordinary tokens, in a decoder behind its start token."""
    ids = ordinary_ids(model)
    if not model.is_encoder_decoder:
        return _logits_difference(model, ids, None)
    start = torch.full_like(ids[:, :1], model.bos_token_id)
    return _logits_difference(model, ids, torch.cat([start, ids], dim=1))


class PadReading:
    """Whether a model reads its padding token like any other: it then computes the same logits from its embedding.

    What a model does with padding depends on where it stands. So texts are told apart by that alone, and one of each
    kind is tried, shortened to two tokens of each run: every chat contains the padding of a model that pads with its
    end of turn, and two more forwards of each would take as long as generating some tokens.
    """

    def __init__(self, model: HuggingfaceModel) -> None:
        self._model = model
        self._found: dict[tuple[tuple[bool, ...], ...], bool] = {}

    def __call__(self, source: BatchEncoding | None, target: BatchEncoding) -> bool:
        """Whether it does in this text; `source` is None for a decoder-only model. Runs two forwards the first time."""
        kept = [self._kept(each) for each in (source, target) if each is not None]
        kind = tuple(tuple(is_pad for _, is_pad in each) for each in kept)
        if kind not in self._found:
            ids = [torch.tensor([[index for index, _ in each]], device=target.input_ids.device) for each in kept]
            difference, scale = _logits_difference(self._model, ids[0], ids[1] if len(ids) > 1 else None)
            self._found[kind] = difference <= _TOLERANCE * scale
        return self._found[kind]

    def _kept(self, text: BatchEncoding) -> list[tuple[int, bool]]:
        """The ids of the shortened text, and whether each is padding."""
        is_pad = [each == self._model.pad_token for each in text.input_tokens[0]]
        marked = zip(text.input_ids[0].tolist(), is_pad, strict=True)
        runs = (list(run) for _, run in groupby(marked, key=itemgetter(1)))
        return [each for run in runs for each in run[:2]]


@torch.no_grad()
def _logits_difference(
    model: HuggingfaceModel, ids: torch.Tensor, decoder_ids: torch.Tensor | None
) -> tuple[float, float]:
    """The largest difference between logits from ids and from embeddings, and the largest absolute logit."""
    mask = torch.ones_like(ids)
    by_ids = {"input_ids": ids, "attention_mask": mask}
    by_embeddings = {"inputs_embeds": model.embed_ids(ids), "attention_mask": mask}
    if decoder_ids is not None:
        by_ids |= {"decoder_input_ids": decoder_ids}
        by_embeddings |= {"decoder_inputs_embeds": model.embed_ids(decoder_ids, as_targets=True)}
    # Without a key-value cache, with which FSMT would attend to later positions.
    expected, found = (model.model(**each, use_cache=False).logits.float() for each in (by_ids, by_embeddings))
    return float((expected - found).abs().max()), max(float(expected.abs().max()), 1e-6)


def takes_float32_copies(dtype: torch.dtype, ledger: Ledger) -> bool:
    """Whether a method that needs float32 inputs gets copies of this model's embeddings; notes it in the ledger."""
    return dtype != torch.float32 and ledger.apply(HALF_PRECISION)

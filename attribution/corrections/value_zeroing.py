"""Value zeroing on any network with attention, found from its operations; Inseq looks for names in its own table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.attr.feat.ops import ValueZeroing
from inseq.models import HuggingfaceModel

from attribution.corrections import layer_reruns
from attribution.corrections.attention_layers import (
    BlockCall,
    Layer,
    block_calls,
    first_tensor,
    layers_of,
    with_copied_states,
)
from attribution.corrections.attention_values import AttentionProducts
from attribution.corrections.layer_reruns import NotRerunnable, Rerun
from attribution.corrections.registry import Ledger, declare
from attribution.corrections.zeroed_values import ZeroedValues
from problems import InputRejected, UnsupportedByModel

VALUE_ZEROING = declare(
    "value_zeroing_tensor_blocks",
    reason="value_zeroing fails on most families with Transformers 5: blocks return tensors instead of tuples, the "
    "variables that hold the values were renamed, and classes that Inseq's table lacks are unknown. With the Euclidean "
    "metric it fails on all.",
    remedy="Blocks, attentions and values are found from the operations of a forward, whatever their names.",
    proof="test_corrections_methods.py::test_value_zeroing",
)
_METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": lambda clean, zeroed: 1 - torch.cosine_similarity(clean, zeroed, dim=-1),
    "euclidean": lambda clean, zeroed: (clean - zeroed).norm(dim=-1),
}
_LEAST = 1e-5  # Inseq's: a smaller distance is rounding
_DECODER_INPUTS = ("decoder_inputs_embeds", "decoder_input_ids", "decoder_attention_mask")


@dataclass(frozen=True)
class _Side:
    """An encoder or a decoder in the clean forward."""

    layers: list[Layer]  # those with attention
    calls: list[BlockCall]  # of each layer; an output may have positions of padding behind the others
    last: torch.Tensor  # the last hidden state, [rows, positions, width]
    name: str  # of the hidden states in the network's output
    count: int  # layers with and without attention

    @property
    def positions(self) -> int:
        return int(self.last.shape[1])

    def clean(self, index: int) -> torch.Tensor:
        """What a layer's zeroed output is compared with."""
        return self.last if self.layers[index].is_last else first_tensor(self.calls[index].output)[:, : self.positions]

    def reruns(self, places: Sequence[int], kind: str, units: Any) -> list[Rerun]:
        """What it takes to run these layers again. Raises `NotRerunnable` for a last layer whose output the network
        transforms in an unknown way, and for layers whose values are all kept.
        """
        found = []
        for place in places:
            call, clean = self.calls[place], self.clean(place)
            finish: layer_reruns.Finish = _unchanged
            if self.layers[place].is_last:
                finish = layer_reruns.finishing(call, first_tensor(call.output), self.last)
            layer, heads = self.layers[place], units
            if isinstance(units, dict):
                if layer.index not in units:  # it keeps all its values
                    raise NotRerunnable
                heads = units[layer.index]
            found.append(Rerun(call, clean, finish, *layer_reruns.attentions(layer, kind), heads))
        return found


class ValueZeroingByOperations(ValueZeroing):  # type: ignore[misc]
    """Value zeroing (Mohebbi et al., 2023, https://aclanthology.org/2023.eacl-main.245/).

    For each layer and token: the distance between the block's output and its output with the token's value vector set
    to zero in this layer alone. As in Inseq, the last block's output is the model's last hidden state, distances below
    1e-5 are zero, and the distances at a position sum to 1 over the tokens. Layers without attention have no scores.
    """

    def __init__(self, forward_func: HuggingfaceModel) -> None:
        super().__init__(forward_func)
        self.warnings: list[str] = []  # once `attribute` ran
        # How many rows of so many positions a layer may run at once, and what is called before each batch with the part
        # (0 to 1) that is done; it may raise.
        self.rows_at_once: Callable[[int], int] = lambda _: 1
        self.on_progress: Callable[[float], None] = lambda _: None

    def attribute(
        self,
        inputs: tuple[torch.Tensor, ...],
        additional_forward_args: tuple[Any, ...],
        similarity_metric: str = "cosine",
        encoder_zeroed_units_indices: Any = None,
        decoder_zeroed_units_indices: Any = None,
        cross_zeroed_units_indices: Any = None,
        output_decoder_self_scores: bool = True,
        output_encoder_self_scores: bool = True,
    ) -> tuple[torch.Tensor | None, ...]:
        """Scores [rows, zeroed tokens, positions, layers with attention] of the encoder's self-attention, of
        cross-attention and of the decoder's self-attention; decoder-only models have the last alone.

        Raises `UnsupportedByModel` for a network without attention, or whose blocks or values cannot be found, and
        `InputRejected` for an unknown metric or attention head.
        """
        if similarity_metric not in _METRICS:
            raise InputRejected(
                f"attribution_args.similarity_metric: there is no {similarity_metric!r}. There are: "
                f"{', '.join(_METRICS)}."
            )

        @torch.no_grad()
        def forward() -> Any:
            return self.forward_func.forward_with_output(*inputs, *additional_forward_args, output_hidden_states=True)

        encoder, decoder = _sides(self.forward_func.model, forward)
        # A layer may hold several attentions; its index is among all of its side's.
        with_attention = {layer.index for layer in decoder.layers}
        without = [str(index) for index in range(decoder.count) if index not in with_attention]
        if without:
            layers = f"{', '.join(without)} of {decoder.count}"
            self.warnings = [f"The scores are of layers with attention, not of {layers}: these have no value vectors."]
        has_own = encoder is None or output_decoder_self_scores or len(inputs) > 1
        kinds = int(has_own) + (0 if encoder is None else 1 + int(output_encoder_self_scores))
        text = _Text(forward, _METRICS[similarity_metric], kinds, self.rows_at_once, self.on_progress)
        own = None
        if has_own:
            own = text.scores(decoder, "own", decoder.positions, decoder_zeroed_units_indices, is_causal=True)
        if encoder is None:
            return (own,)
        of_encoder = None
        if output_encoder_self_scores:
            of_encoder = text.scores(encoder, "own", encoder.positions, encoder_zeroed_units_indices)
        return of_encoder, text.scores(decoder, "source", encoder.positions, cross_zeroed_units_indices), own


def correct_value_zeroing(method: FeatureAttribution, model: HuggingfaceModel, ledger: Ledger) -> None:
    """Make a loaded `value_zeroing` method find blocks, attentions and values by itself."""
    if ledger.apply(VALUE_ZEROING):
        method.method = ValueZeroingByOperations(model)
        method.use_hidden_states = False  # it takes them from its own clean forward


class _Text:
    """The forwards of one text with values set to zero."""

    def __init__(
        self,
        forward: Callable[[], Any],
        distance: layer_reruns.Distance,
        kinds: int,
        rows_at_once: Callable[[int], int],
        on_progress: Callable[[float], None],
    ) -> None:
        """`kinds`: how often `scores` will be called."""
        self._forward = forward
        self._distance = distance
        self._kinds, self._kinds_done = kinds, 0
        self._rows_at_once = rows_at_once
        self._on_progress = on_progress

    def scores(self, side: _Side, kind: str, tokens: int, units: Any, *, is_causal: bool = False) -> torch.Tensor:
        """Scores with the values of one kind (`own` or `source`) zeroed: [rows, tokens, positions, layers]."""
        places = [index for index, layer in enumerate(side.layers) if getattr(layer, kind)]
        distances = self._by_layer(side, places, kind, tokens, units, is_causal=is_causal)
        if distances is None:
            rows = side.last.shape[0]
            distances = side.last.new_full((rows, len(places), side.positions, tokens), math.nan, dtype=torch.float32)
            for token in range(tokens):
                start = token if is_causal else 0
                distances[:, :, start:, token] = self._distances(side, places, kind, token, units)[:, :, start:]
        self._kinds_done += 1
        distances = torch.where(distances < _LEAST, 0.0, distances)
        total = distances.nansum(-1, keepdim=True)
        return (distances / torch.where(total == 0, 1.0, total)).permute(0, 3, 2, 1)

    def _by_layer(
        self, side: _Side, places: Sequence[int], kind: str, tokens: int, units: Any, *, is_causal: bool
    ) -> torch.Tensor | None:
        """Distances [1, layers, positions, tokens], from each layer run again by itself; None if one cannot be."""
        rows, found = self._rows_at_once(side.positions), list[torch.Tensor]()

        def before_batch(part: float) -> None:
            self._on_progress((self._kinds_done + (len(found) + part) / len(places)) / self._kinds)

        try:
            for each in side.reruns(places, kind, units):
                more = layer_reruns.distances(
                    each, tokens, self._distance, is_causal=is_causal, rows_at_once=rows, before_batch=before_batch
                )
                found.append(more)
        except NotRerunnable:
            return None
        before_batch(0.0)  # all layers are done
        return torch.stack(found)[None]

    def _distances(self, side: _Side, places: Sequence[int], kind: str, token: int, units: Any) -> torch.Tensor:
        """The distance of each layer's output with one token zeroed, [rows, layers, positions].

        One forward does all layers: each block's clean output takes the place of its zeroed one.
        """
        zeroed: dict[int, torch.Tensor] = {}

        def leave(place: int, output: Any) -> Any:
            zeroed[place] = first_tensor(output)[:, : side.positions]
            return output if side.layers[place].is_last else with_copied_states(side.calls[place].output)

        values = ZeroedValues({place: side.layers[place] for place in places}, kind, token, units, leave)
        with values.hooked(), AttentionProducts(values.on_product):
            output = self._forward()
        for place in places:
            if side.layers[place].is_last:
                zeroed[place] = _last_state(output, side.name)
        return torch.stack([self._distance(side.clean(each).float(), zeroed[each].float()) for each in places], 1)


def _sides(network: Any, forward: Callable[[], Any]) -> tuple[_Side | None, _Side]:
    """The encoder, if there is one, and the decoder, from a clean forward; from two where both are of one length."""
    calls, output = block_calls(network, forward)
    if not network.config.is_encoder_decoder:
        return None, _side(network, calls, calls, output, "hidden_states", None)
    inside = {id(module) for module in network.get_encoder().modules()}
    theirs, ours = ([each for each in calls if (id(each.block) in inside) is own] for own in (True, False))
    encoder = _side(network, theirs, theirs, output, "encoder_hidden_states", None)
    told_apart = ours
    if encoder.positions == _last_state(output, "decoder_hidden_states").shape[1]:
        with _other_length(network):  # else the number of keys does not tell which side they are of
            again, _ = block_calls(network, forward)
        told_apart = [each for each in again if id(each.block) not in inside]
    decoder = _side(network, ours, told_apart, output, "decoder_hidden_states", encoder.positions)
    if not any(layer.source for layer in decoder.layers):
        raise _no_attention(network, "cross-attention")
    return encoder, decoder


def _side(
    network: Any, calls: list[BlockCall], told_apart: list[BlockCall], output: Any, name: str, source: int | None
) -> _Side:
    """One side, from its calls of blocks. `told_apart`: the same calls, in a forward where `source` is not the length
    of the side itself.
    """
    layers = layers_of(told_apart, source=source)
    if not any(layer.own for layer in layers):
        raise _no_attention(network, "attention")
    places = {(each.block, each.call): each for each in calls}
    of_layers = [places[layer.block, layer.call] for layer in layers]
    last = _last_state(output, name)
    for layer, found in zip(layers, of_layers, strict=True):
        if not layer.is_last and not _is_among(first_tensor(found.output), output[name]):
            raise UnsupportedByModel(
                f"value_zeroing compares the outputs of a model's layers. {type(layer.block).__name__} holds the "
                "attention here, and its output is none of the hidden states that the model returns. Use attention, or "
                "a gradient method."
            )
    stack = next(each.stack for each in told_apart if each.block is layers[0].block)
    count = sum(each.stack is stack for each in told_apart)
    return _Side(layers, of_layers, last, name, count)


def _is_among(found: torch.Tensor, states: Sequence[torch.Tensor]) -> bool:
    """Whether a block's output, perhaps padded, is one of the model's hidden states."""
    return any(found.shape[::2] == each.shape[::2] and torch.equal(found[:, : each.shape[1]], each) for each in states)


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


def _last_state(output: Any, name: str) -> torch.Tensor:
    # Not the last of an encoder's hidden states, which some families pad.
    last: torch.Tensor = output.encoder_last_hidden_state if name == "encoder_hidden_states" else output[name][-1]
    return last


def _no_attention(network: Any, kind: str) -> UnsupportedByModel:
    return UnsupportedByModel(
        f"{type(network).__name__} has no {kind}: value_zeroing sets the value vectors of attention to zero. Use a "
        "gradient method, or occlusion."
    )


@contextmanager
def _other_length(network: torch.nn.Module) -> Iterator[None]:
    """Within the block, the decoder's input has one position less, or twice its only one."""

    def before(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name in _DECODER_INPUTS:
            if (given := named.get(name)) is not None:
                named[name] = given[:, :-1] if given.shape[1] > 1 else torch.cat([given, given], 1)
        return arguments, named

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield

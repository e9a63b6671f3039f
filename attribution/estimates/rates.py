"""Measures a model's speed and memory use on its device, and computes what passes cost at these rates.

A few short forwards and backwards are measured once for each loaded model. For each method, a factor learnt from the
duration of real jobs corrects the result. Knows nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from attribution.estimates.passes import Passes
from attribution.model_cache.loading import LoadedModel, ModelKey

_SHORT, _LONG = 8, 48  # tokens of the two probes
_REPEATS = 3
_SCORES_AT_ONCE = 3  # of eager attention: scaled, masked, and their softmax
_MOST_KNOWN = 256  # models whose rates are remembered
# Weight of a new job in the exponential moving average of a method's factor.
_LEARNING = 0.3


@dataclass(frozen=True)
class Line:
    """A quantity that grows with the tokens of a pass: `fixed + per_token * tokens`."""

    fixed: float
    per_token: float

    def at(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens

    @classmethod
    def through(cls, short: float, long: float) -> Line:
        """The line through the values at the two probes' lengths, with a slope and an offset of at least 0."""
        slope = max(0.0, (long - short) / (_LONG - _SHORT))
        return cls(max(0.0, short - slope * _SHORT), slope)


@dataclass(frozen=True)
class ModelRates:
    """The measured rates of one loaded model on its device, in seconds and bytes."""

    forward: Line
    with_backward: Line  # forward and backward together
    kept_per_token: float  # bytes that a forward stores for its backward, for each token
    kept_per_pair: float  # and for each pair of tokens of one row (attention)
    attention_per_pair: float  # bytes of one layer's attention in a forward, for each pair of tokens of one row
    logits_per_token: float  # bytes
    weights: int  # bytes

    def seconds(self, passes: Iterable[Passes]) -> float:
        return sum(each.calls * self._seconds(each) for each in passes)

    def of_generation(self, prompt: int, new: int, beams: int) -> float:
        """Seconds of a generation: a forward over the prompt, and one for each new token."""
        return self.forward.at(prompt * beams) + new * self.forward.at(beams)

    def peak_bytes(self, passes: Iterable[Passes]) -> int:
        """Bytes of the weights and of the largest pass."""
        return self.weights + max((self._bytes(each) for each in passes), default=0)

    def _seconds(self, one: Passes) -> float:
        # The backward passes of one forward run together, as one of so many rows.
        tokens = one.tokens * one.backwards
        backward = max(0.0, self.with_backward.at(tokens) - self.forward.at(tokens)) if one.backwards else 0.0
        return self.forward.at(one.tokens) + backward

    def _bytes(self, one: Passes) -> int:
        if not one.is_forward:
            return 0  # no logits, and batches that fit into the memory
        # The logits, and the probabilities computed from them.
        logits = 2 * self.logits_per_token * one.tokens
        if not one.backwards:
            return int(logits + self.attention_per_pair * one.length**2)  # rows are divided by what is free
        return int(logits + one.rows * (self.kept_per_token * one.length + self.kept_per_pair * one.length**2))


class Rates:
    """The rates of every model that was loaded, and the ratio of real to expected durations for each method."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._models: dict[ModelKey, ModelRates] = {}
        self._factors: dict[tuple[ModelKey, str], float] = {}

    def of(self, key: ModelKey) -> ModelRates | None:
        """The measured rates of a model; None if it was never loaded."""
        return self._models.get(key)

    def measured(self, loaded: LoadedModel) -> ModelRates:
        """The rates of a model, measured now if needed. The caller holds the model's lock."""
        found = self._models.get(loaded.key)
        if found is None:
            found = measure(loaded)
            with self._guard:
                while len(self._models) >= _MOST_KNOWN:
                    forgotten = next(iter(self._models))
                    del self._models[forgotten]
                    self._factors = {key: value for key, value in self._factors.items() if key[0] != forgotten}
                self._models[loaded.key] = found
        return found

    def factor(self, key: ModelKey, route: str) -> float | None:
        """Real seconds of jobs of this method and engine, divided by the seconds that their passes cost.

        None before the first such job has ended.
        """
        return self._factors.get((key, route))

    def learn(self, key: ModelKey, route: str, *, expected: float, took: float) -> None:
        """Record a job's expected and real duration in seconds."""
        if expected <= 0 or took <= 0:
            return
        with self._guard:
            before = self._factors.get((key, route))
            now = (before or 1.0) * took / expected
            self._factors[key, route] = now if before is None else before + _LEARNING * (now - before)


def measure(loaded: LoadedModel) -> ModelRates:
    """Measure a model with a few short passes. The caller holds the model's lock."""
    kept = [_kept_bytes(loaded, length) for length in (_SHORT, _LONG)]
    # Solve kept = per_token * n + per_pair * n^2 for both lengths.
    per_pair = max(0.0, (kept[1] / _LONG - kept[0] / _SHORT) / (_LONG - _SHORT))
    config = loaded.network.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)  # RWKV has none
    return ModelRates(
        forward=Line.through(*(_seconds(loaded, length, backward=False) for length in (_SHORT, _LONG))),
        with_backward=Line.through(*(_seconds(loaded, length, backward=True) for length in (_SHORT, _LONG))),
        kept_per_token=max(0.0, kept[1] / _LONG - per_pair * _LONG),
        kept_per_pair=per_pair,
        attention_per_pair=float(_SCORES_AT_ONCE * heads * loaded.network.dtype.itemsize),
        logits_per_token=float(config.vocab_size * 4),
        weights=loaded.size,
    )


def _seconds(loaded: LoadedModel, length: int, *, backward: bool) -> float:
    """Seconds of the fastest of a few passes over `length` tokens, since other load can only add time."""
    taken = []
    for _ in range(_REPEATS):
        _synchronize(loaded.key.device)
        began = time.perf_counter()
        _pass(loaded, length, backward=backward)
        _synchronize(loaded.key.device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _kept_bytes(loaded: LoadedModel, length: int) -> int:
    """Bytes that one row's forward stores for its backward, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in loaded.network.parameters()}
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []  # keeps tensors alive, so that addresses stay unique

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _pass(loaded, length, backward=True)
    return sum(sizes.values())


def _pass(loaded: LoadedModel, length: int, *, backward: bool) -> None:
    network = loaded.network
    ids = torch.full((1, length), int(loaded.model.bos_token_id or 0), device=loaded.key.device)
    mode: Callable[[], Any] = nullcontext if backward else torch.no_grad
    with mode():
        if loaded.model.is_encoder_decoder:
            half = ids[:, : length // 2]
            inputs = {"inputs_embeds": _embedded(loaded, half), "decoder_input_ids": half}
        else:
            inputs = {"inputs_embeds": _embedded(loaded, ids)}
        # A copy of the embeddings, which CTRL changes; no cache, in which RWKV changes what backward needs.
        output = network(**inputs | {"inputs_embeds": inputs["inputs_embeds"].clone()}, use_cache=False)
        if backward:
            score = output.logits[:, -1].float().softmax(-1)[:, 0].sum()
            torch.autograd.grad(score, inputs["inputs_embeds"])


def _embedded(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    embedded: torch.Tensor = loaded.network.get_input_embeddings()(ids)
    return embedded.detach().requires_grad_()


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

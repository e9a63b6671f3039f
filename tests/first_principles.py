"""Attributions computed from their definitions with autograd on plain Transformers models, without Inseq or Captum.

For one text. Scores are [attributed token, generated token, hidden], NaN from the position of the generated token on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

Function = Callable[[torch.Tensor, int], torch.Tensor]  # (logits of the next token [rows, vocabulary], step) -> [rows]


class Plain:
    """A model and its tokenizer in plain Transformers, and the ids of one text and its target."""

    def __init__(self, path: Path, text: str, target: str, dtype: torch.dtype = torch.float32) -> None:
        config = AutoConfig.from_pretrained(path)
        self.is_encoder_decoder = bool(config.is_encoder_decoder)
        auto: Any = AutoModelForSeq2SeqLM if self.is_encoder_decoder else AutoModelForCausalLM
        if not self.is_encoder_decoder and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            auto = AutoModelForImageTextToText
        self.network: PreTrainedModel = auto.from_pretrained(path, attn_implementation="eager", dtype=dtype).eval()
        self.network.requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        source = self.tokenizer(text, return_tensors="pt").input_ids
        if self.is_encoder_decoder:
            labels = self.tokenizer(text_target=target, return_tensors="pt").input_ids
            start = torch.tensor([[self.network.config.decoder_start_token_id]])
            self.source, self.target, self.first = source, torch.cat([start, labels], 1), 1
        else:
            self.source, self.target = source, self.tokenizer(target, return_tensors="pt").input_ids
            self.first = source.shape[1]
        self.steps = range(self.first, self.target.shape[1])
        self.unknown = self.tokenizer.unk_token_id

    def logits(self, step: int, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the token at `step`, [rows, vocabulary], from ids or from embeddings of the attributed side."""
        prefix = self.target[:, :step]
        if embeddings is None:
            inputs = {"input_ids": self.source, "decoder_input_ids": prefix}
            inputs = inputs if self.is_encoder_decoder else {"input_ids": prefix}
        elif self.is_encoder_decoder:
            inputs = {"inputs_embeds": embeddings, "decoder_input_ids": prefix.repeat(len(embeddings), 1)}
        else:
            inputs = {"inputs_embeds": embeddings}
        logits: torch.Tensor = self.network(**inputs).logits[:, -1]
        return logits

    def log_probabilities(self) -> np.ndarray:
        """Log-probability of each generated token, [generated]."""
        with torch.no_grad():
            found = [self.logits(step).log_softmax(-1)[0, self.target[0, step]] for step in self.steps]
        return torch.stack(found).numpy()

    def probabilities(self) -> np.ndarray:
        """Probability of each generated token, [generated]."""
        return np.exp(self.log_probabilities())

    def embedded(self, step: int, *, baseline: bool = False) -> torch.Tensor:
        """Embeddings of the tokens attributed at `step`, or of their baseline: [1, length, hidden]."""
        ids = self.source if self.is_encoder_decoder else self.target[:, :step]
        if baseline:
            eos = self.network.config.eos_token_id
            ids = torch.where(ids == eos, ids, self.unknown)
        found: list[torch.Tensor] = []
        module = self.network.get_encoder() if self.is_encoder_decoder else self.network
        embed = module.embed_tokens if hasattr(module, "embed_tokens") else module.get_input_embeddings()
        found.append(embed(ids))
        # Families with scaled embeddings scale them where the encoder reads them.
        return found[0] * getattr(module, "embed_scale", 1.0)

    def probability(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        return logits.softmax(-1)[:, self.target[0, step]]

    def gradient(self, at: torch.Tensor, step: int, function: Function | None = None) -> torch.Tensor:
        """Gradient of the function at these embeddings, for each row: [rows, length, hidden]."""
        at = at.detach().requires_grad_()
        (found,) = torch.autograd.grad((function or self.probability)(self.logits(step, at), step).sum(), at)
        return found

    def integrated(self, step: int, n_steps: int, function: Function | None = None) -> torch.Tensor:
        """Integrated gradients by Gauss-Legendre quadrature (Sundararajan et al., 2017): [length, hidden]."""
        points, weights = np.polynomial.legendre.leggauss(n_steps)
        x, b = self.embedded(step), self.embedded(step, baseline=True)
        alphas = torch.tensor((points + 1) / 2, dtype=x.dtype)[:, None, None]
        gradients = self.gradient(b + alphas * (x - b), step, function)
        mean = (torch.tensor(weights / 2, dtype=x.dtype)[:, None, None] * gradients).sum(0)
        return mean * (x - b)[0]

    def scores(self, of_step: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """Stack the scores of each step, [length, hidden], as Inseq does: [length, generated, hidden]."""
        columns = [of_step(step) for step in self.steps]
        length = self.source.shape[1] if self.is_encoder_decoder else self.target.shape[1]
        stacked = torch.full((length, len(columns), columns[0].shape[-1]), float("nan"))
        for index, column in enumerate(columns):
            stacked[: len(column), index] = column
        return stacked


@contextmanager
def zeroed_values(network: PreTrainedModel, attention: torch.nn.Module, token: int) -> Iterator[None]:
    """Set one token's value vector to zero in one attention module while this context is open."""
    modeling: Any = sys.modules[type(network).__module__]
    eager = modeling.eager_attention_forward

    def zeroing(module: torch.nn.Module, query: Any, key: Any, value: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if module is attention:
            value = value.clone()
            value[:, :, token] = 0
        return eager(module, query, key, value, *rest, **named)

    modeling.eager_attention_forward = zeroing
    try:
        yield
    finally:
        modeling.eager_attention_forward = eager


def value_zeroing(plain: Plain) -> torch.Tensor:
    """Value zeroing of a decoder-only model (Mohebbi et al., 2023): [token, generated, layer].

    The cosine distance of a block's output with one token's value vector set to zero; normalised over tokens.
    """
    network, ids = plain.network, plain.target[:, :-1]  # the last token predicts nothing
    attentions = [
        module for name, module in network.named_modules() if name.split(".")[-1] in {"attn", "self_attn", "attention"}
    ]
    length = ids.shape[1]
    distances = torch.full((length, length, len(attentions)), float("nan"))
    with torch.no_grad():
        clean = network(ids, output_hidden_states=True).hidden_states
        for layer, attention in enumerate(attentions):
            for token in range(length):
                with zeroed_values(network, attention, token):
                    zeroed = network(ids, output_hidden_states=True).hidden_states
                turned = 1 - torch.cosine_similarity(clean[layer + 1], zeroed[layer + 1], dim=-1)[0]
                distances[token, token:, layer] = turned[token:]
    distances[distances < 1e-5] = 0
    total = distances.nansum(0, keepdim=True)
    return (distances / torch.where(total == 0, 1, total))[:, plain.first - 1 :]

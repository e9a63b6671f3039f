"""The text behind a prompt, as people read it: of a finished target, and of one that is being generated."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from inseq.data import BatchEncoding
from inseq.models import HuggingfaceModel
from transformers.generation.streamers import BaseStreamer

from attribution.model_cache.loading import LoadedModel
from attribution.text.generation_settings import GenerationSettings
from models import Arguments

_INTERVAL = 0.2  # seconds between two texts of a generation: a client is told of no more
_UNREADABLE = "\ufffd"


def continuation_of(model: HuggingfaceModel, source: BatchEncoding, target: BatchEncoding) -> str:
    """The text behind the prompt, without special tokens; a space in front of it stays."""
    ids = target.input_ids[0].tolist()
    return _behind(model, [] if model.is_encoder_decoder else ids[: source.input_ids.shape[1]], ids)


def streamed(
    loaded: LoadedModel, source: BatchEncoding, settings: GenerationSettings, on_text: Callable[[str], None]
) -> Arguments:
    """The arguments of `generate` by which `on_text` gets the text while it grows, a few times a second.

    None where Transformers cannot: beams change tokens that were there, and some models have a `generate` of their own.
    """
    accepts = "streamer" in inspect.signature(loaded.network.generate).parameters
    if settings.beams > 1 or not accepts:
        return {}
    prompt = [] if loaded.model.is_encoder_decoder else source.input_ids[0].tolist()
    return {"streamer": _Streamer(loaded.model, prompt, on_text)}


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Called by `generate` with the prompt first (or the decoder's first tokens), and then with new ids."""

    def __init__(self, model: HuggingfaceModel, prompt: list[int], on_text: Callable[[str], None]) -> None:
        self._model = model
        self._prompt = prompt
        self._on_text = on_text
        self._ids: list[int] = []
        self._told_at = time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        self._ids += value.reshape(-1).tolist()
        now = time.monotonic()
        if len(self._ids) > len(self._prompt) and now - self._told_at >= _INTERVAL:
            self._told_at = now
            # The last character may lack some of its bytes.
            self._on_text(_behind(self._model, self._prompt, self._ids).rstrip(_UNREADABLE))

    def end(self) -> None:
        pass


def _behind(model: HuggingfaceModel, prompt: list[int], ids: list[int]) -> str:
    """The text of `ids` behind the prompt, with which they begin."""

    def text_of(part: list[int]) -> str:
        options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(model.tokenizer.decode(part, **options))

    # A decoder drops a space at the beginning, so the tokens behind the prompt are not decoded by themselves.
    before, whole = text_of(prompt), text_of(ids)
    return whole[len(before) :] if whole.startswith(before) else text_of(ids[len(prompt) :])

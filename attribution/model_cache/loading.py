"""Loads one model from its files onto a device and wraps it with Inseq.

Knows nothing of names, sharing, requests or attribution.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from inseq.models import HuggingfaceModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from attribution import network_state
from attribution.catalogue.length_changes import dynamic_factor
from attribution.catalogue.traits import STEP_SCORES_ONLY
from attribution.corrections.embeddings import EmbeddingsFix, PadReading, embeddings_fix
from attribution.isolation import DEFAULT_DTYPE, RANDOM_DRAWS, held
from attribution.model_cache import (
    adapter_merging,
    gradient_check,
    half_precision,
    lean_forwards,
    loading_report,
    quantized,
    quantized_weights,
)
from attribution.model_cache.attention_outputs import AttentionOutputs, find_attention_outputs
from attribution.model_cache.model_source import ModelSource
from problems import ModelUnavailable, UnsupportedByModel

# `from_pretrained` changes process-wide state while it builds a model, so only one thread may call it at a time.
_LOADING = threading.Lock()


@dataclass(frozen=True)
class ModelKey:
    """Identifies a loaded model: two with equal keys are interchangeable."""

    name: str
    revision: str
    device: str
    dtype: str


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, wrapped by Inseq. Attributing with it requires holding `lock`."""

    key: ModelKey
    source: ModelSource
    model: HuggingfaceModel
    size: int  # bytes of parameters and buffers
    embeddings_fix: EmbeddingsFix = field(default_factory=EmbeddingsFix)
    attention: AttentionOutputs = field(default_factory=AttentionOutputs)
    is_lean: bool = False  # whether `lean_forwards` leave its last logits as they are
    verdicts: dict[Any, Any] = field(default_factory=dict)  # results of engine probes, see `run.engine_choice`
    warnings: list[str] = field(default_factory=list)  # about its weights, for every result
    lock: threading.Lock = field(default_factory=threading.Lock)
    leases: int = 0
    hits: int = 0
    last_used: int = 0
    reads_pads: PadReading = field(init=False)

    def __post_init__(self) -> None:
        self.reads_pads = PadReading(self.model)

    @property
    def network(self) -> PreTrainedModel:
        """The Transformers model inside Inseq's wrapper."""
        return self.model.model

    @property
    def compute_dtype(self) -> str:
        """The dtype of the computation: that of the weights' values (`key.dtype`), or float32 (`half_precision`)."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def limit(self) -> int | None:
        """The most positions that the model accepts; None if it has no such limit (relative positions)."""
        return position_limit(self.network.config)


def position_limit(config: PretrainedConfig) -> int | None:
    """The most positions that a model of this configuration accepts; None if it has no such limit.

    Dynamic NTK rotary positions are made for `factor` times the configuration's limit.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    # XLNet says -1.
    return int(limit * dynamic_factor(config)) if limit and limit > 0 else None


def load(
    source: ModelSource,
    key: ModelKey,
    should_cancel: Callable[[], bool] = lambda: False,
    *,
    compute_dtype: str | None = None,
) -> LoadedModel:
    """Read a model from its files, merge its adapter into it, wrap it with Inseq and move it to its device.

    `compute_dtype` is that of the key, or float32 for weights whose values are rounded to the dtype of the key.
    Raises `ModelUnavailable` if it cannot be read, `UnsupportedByModel` if Inseq's scores for it would be wrong, and
    `Cancelled` if `should_cancel` returns True while it waits for other threads.
    """
    dtype = getattr(torch, compute_dtype or key.dtype)
    alone = nullcontext() if dtype == torch.float32 else DEFAULT_DTYPE.exclusive(should_cancel)
    try:
        config = AutoConfig.from_pretrained(source.config_folder(), trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_folder(), trust_remote_code=False)
        with held(_LOADING, should_cancel), alone, held(RANDOM_DRAWS, should_cancel):
            network, warnings = _read(source, config, dtype)
            if compute_dtype not in {None, key.dtype}:
                half_precision.round_weights(network, getattr(torch, key.dtype))
                warnings.append(half_precision.warning(key.dtype))
            _name_special_ids(network.config)
            # Inseq's constructor would move the model to a GPU of its choice unless `device` is given, and its default
            # dictionaries are shared by all models of the process, so we pass new ones.
            with _stand_in_bos(network):
                model = HuggingfaceModel.load(
                    network, STEP_SCORES_ONLY, tokenizer=tokenizer, device="cpu", model_kwargs={}, tokenizer_kwargs={}
                )
    except (torch.OutOfMemoryError, MemoryError, ModelUnavailable):
        raise
    except Exception as error:  # readers raise many types for damaged files or unknown architectures
        kind = f" (quantized by {source.quantization})" if source.quantization else ""
        raise ModelUnavailable(
            f"{source.name!r}{kind} could not be loaded: {loading_report.first_line(error)}"
        ) from error
    model.model_name = source.name
    model.tokenizer_name = source.name
    with quantized.computing(source):
        network.to(key.device)
        model._device = key.device  # noqa: SLF001 - Inseq's setter refuses `cuda:0`
        if not model.is_encoder_decoder and network.config.bos_token_id is None:
            model.bos_token_id = None
        model.eval()  # including the wrapper, which Inseq leaves in train mode
        network.requires_grad_(False)
        size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
        loaded = LoadedModel(key, source, model, size, warnings=warnings)
        network_state.watch(network)
        with DEFAULT_DTYPE.shared():
            _probe(loaded)
    return loaded


def _read(source: ModelSource, config: PretrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, list[str]]:
    """The network, its weights in `dtype`, quantized ones made wide and an adapter merged; and its warnings."""
    architecture = next(iter(config.architectures or []), None)
    warnings = [*source.notes, *quantized.warnings(config)]  # before reading, which takes this out of `config`
    network, report = _auto_class(source, config).from_pretrained(
        source.path,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # `loading_report` names them
        output_loading_info=True,
        **quantized.reading_options(config),
        **({} if source.gguf is None else {"gguf_file": source.gguf}),
    )
    warnings += loading_report.check(source.name, network, architecture, report)
    if source.quantization is not None:
        quantized_weights.check_all_read(source.name, network, report["unexpected_keys"])
        quantized_weights.make_wide(network, dtype)
    if source.adapter is not None:
        warnings += adapter_merging.merge(source.name, network, source.adapter)
    return network, warnings


def _probe(loaded: LoadedModel) -> None:
    """Fill in what is known of a network by its forwards. Raises a `JobError` if scores for it would be wrong."""
    model = loaded.model
    warm_up(loaded)
    loaded.embeddings_fix = embeddings_fix(model)
    with loaded.embeddings_fix.applied(model):
        if loaded.source.quantization is not None and (reason := gradient_check.obstacle(model)):
            raise UnsupportedByModel(
                f"{loaded.source.name!r} is quantized ({loaded.source.quantization}), and its gradients are not those "
                f"of its logits: {reason}. Take the model's unquantized weights."
            )
        loaded.is_lean = lean_forwards.are_exact(model)


def _auto_class(source: ModelSource, config: PretrainedConfig) -> Any:
    """The class of Transformers that loads this kind of model; one that reads images is loaded for its text alone.

    Raises `ModelUnavailable` for a model that generates no text.
    """
    kind = type(config)
    if config.is_encoder_decoder and kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return AutoModelForSeq2SeqLM
    if not config.is_encoder_decoder and kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if not config.is_encoder_decoder and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelUnavailable(
        f"{source.name!r} is a {config.model_type} model ({', '.join(config.architectures or ['no architecture'])}), "
        "and Transformers has no class that generates text with it. Use a causal or an encoder-decoder language model."
    )


def _name_special_ids(config: PretrainedConfig) -> None:
    """Copy the ids of special tokens to where Inseq reads them: those of a model with images are its text model's."""
    text = config.get_text_config(decoder=True)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not hasattr(config, name):
            setattr(config, name, getattr(text, name, None))


@contextmanager
def _stand_in_bos(network: PreTrainedModel) -> Iterator[None]:
    """Set EOS as BOS within the block if the model has no BOS token (some chat models), which Inseq requires."""
    config = network.config
    if config.is_encoder_decoder or config.bos_token_id is not None:
        yield
        return
    config.bos_token_id = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id or 0
    try:
        yield
    finally:
        config.bos_token_id = None


@torch.no_grad()
def warm_up(loaded: LoadedModel) -> None:
    """Run one forward with all outputs, and record which modules output the attention weights.

    Transformers installs permanent output-capturing hooks in the first such forward; `isolation` must find them in
    its first snapshot of hooks, or it would remove them.
    """
    ids = torch.full((1, 2), int(loaded.model.bos_token_id or 0), device=loaded.key.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if loaded.model.is_encoder_decoder else {})
    forward = partial(loaded.network, **inputs, output_attentions=True, output_hidden_states=True)
    loaded.attention = find_attention_outputs(loaded.network, forward)

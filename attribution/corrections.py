"""Where Inseq 0.7.1 is wrong or fails, and what is done about it: each correction with its reason, in one place.

Nothing here changes Inseq for anybody else: a correction is an object given to one attribution, or a step function
registered with Inseq's own public call under a name of ours. A result names those applied to it (`info.corrections`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import inseq
import nltk
import torch
from inseq.attr.feat import FeatureAttribution
from inseq.attr.feat.ops import ValueZeroing
from inseq.attr.feat.ops.reagent_core.token_sampler import POSTagTokenSampler
from inseq.attr.step_functions import STEP_SCORES_MAP
from inseq.models import HuggingfaceModel, ModelConfig
from inseq.utils import INSEQ_ARTIFACTS_CACHE
from transformers import PreTrainedTokenizerBase

from problems import UnsupportedByModel

StepFunction = Callable[..., torch.Tensor]
PREFIX = "corrected:"


# Step functions


def _one_target_per_row(function: StepFunction) -> StepFunction:
    """`crossentropy` and `perplexity` fail for one sequence: the target's batch dimension was squeezed away."""

    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        args.target_ids = args.target_ids.reshape(-1)
        return function(args, **kwargs).reshape(-1)

    return corrected


def _back_to_eval(function: StepFunction) -> StepFunction:
    """`mc_dropout_prob_avg` leaves the model in train mode: every later probability would be random."""

    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return function(args, **kwargs)
        finally:
            args.attribution_model.eval()

    return corrected


_STEP_FUNCTIONS: dict[str, tuple[str, Callable[[StepFunction], StepFunction]]] = {
    "crossentropy": ("crossentropy_single_sequence", _one_target_per_row),
    "perplexity": ("crossentropy_single_sequence", _one_target_per_row),
    "mc_dropout_prob_avg": ("mc_dropout_restores_eval", _back_to_eval),
}

for _name, (_, _correct) in _STEP_FUNCTIONS.items():
    # Under a name of ours, so that Inseq's own stays what it is.
    inseq.register_step_function(_correct(STEP_SCORES_MAP[_name]), PREFIX + _name, overwrite=True)


def corrected_step_function(name: str) -> str:
    """The name under which Inseq finds the corrected function, or the name itself where Inseq's is right."""
    return PREFIX + name if name in _STEP_FUNCTIONS else name


def step_function_corrections(names: list[str]) -> list[str]:
    """The corrections behind these step functions."""
    return sorted({_STEP_FUNCTIONS[name][0] for name in names if name in _STEP_FUNCTIONS})


# Value zeroing


class TensorValueZeroing(ValueZeroing):  # type: ignore[misc]
    """Value zeroing for transformer blocks that return a tensor, as in Transformers 5, and not a tuple."""

    def get_states_extract_and_patch_hook(self, block_idx: int, hidden_state_idx: int = 0) -> Callable[..., Any]:
        inner = super().get_states_extract_and_patch_hook(block_idx, hidden_state_idx)

        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, torch.Tensor):
                return inner(module, args, (output,))[0]
            return inner(module, args, output)

        return hook


# Attention modules and value variables that Transformers 5 renamed, or that Inseq does not know.
_VALUE_ZEROING_CONFIGS = {
    "GPT2LMHeadModel": ModelConfig(self_attention_module="attn", value_vector="value_states"),
    "GPTNeoXForCausalLM": ModelConfig(self_attention_module="attention", value_vector="value_states"),
    "Qwen3ForCausalLM": ModelConfig(self_attention_module="self_attn", value_vector="value_states"),
}


def correct_value_zeroing(method: FeatureAttribution, model: HuggingfaceModel) -> list[str]:
    """Make a loaded `value_zeroing` method work on Transformers 5's blocks. Returns the corrections applied."""
    method.method = TensorValueZeroing(model)
    model.config = _VALUE_ZEROING_CONFIGS.get(type(model.model).__name__, model.config)
    return ["value_zeroing_tensor_blocks"]


# ReAGent

# Inseq asks nltk for a tagger model at run time, under a name that nltk no longer has. Replacement tokens need a coarse
# word class only; these patterns are nltk's own way to tag without data (Bird et al., 2009, chapter 5).
_TAGGER = nltk.RegexpTagger(
    [
        (r"^-?\d+([.,]\d+)*$", "CD"),
        (r"^\W*$", "PUNCT"),
        (r"^(the|a|an|this|that|these|those|il|lo|la|le|der|die|das|el|los|un|une|una|uno)$", "DT"),
        (r"^(i|you|he|she|it|we|they|me|him|her|us|them)$", "PRP"),
        (r"^(of|in|on|at|by|for|from|with|to|into|about|over|under|between)$", "IN"),
        (r"^(and|or|but|nor|so|yet)$", "CC"),
        (r"^(is|are|was|were|be|been|am|has|have|had|do|does|did|will|would|can|could|may|might|must|should)$", "VB"),
        (r".*ing$", "VBG"),
        (r".*ed$", "VBD"),
        (r".*ly$", "RB"),
        (r".*(able|ible|ous|ful|less|ive|ic|al)$", "JJ"),
        (r"^[A-Z].*s$", "NNPS"),
        (r"^[A-Z]", "NNP"),
        (r".*s$", "NNS"),
        (r".*", "NN"),
    ]
)


def word_classes(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids by word class, for ReAGent's replacements: every id of the vocabulary once."""
    classes: dict[str, list[int]] = defaultdict(list)
    words = [tokenizer.decode([index]).strip() for index in range(tokenizer.vocab_size)]
    for index, (_, tag) in enumerate(_TAGGER.tag(words)):
        classes[tag].append(index)
    return dict(classes)


def seed_word_classes(tokenizer: PreTrainedTokenizerBase, identity: str) -> list[str]:
    """Put the word classes where Inseq looks for them before it would download a tagger."""
    folder = INSEQ_ARTIFACTS_CACHE / "pos_tag_sampler_cache"
    POSTagTokenSampler.build_pos_mapping_from_vocab.__wrapped__  # noqa: B018 - fails loudly if Inseq changes its cache
    file = folder / f"{identity}.pkl"
    if not file.exists():
        _write_cache(file, word_classes(tokenizer))
    return ["reagent_word_classes"]


def _write_cache(file: Path, content: Any) -> None:
    import pickle  # Inseq's cache format; the file is ours, never a client's

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_bytes(pickle.dumps(content))
    temporary.rename(file)


@contextmanager
def cache_identity(model: HuggingfaceModel, identity: str) -> Iterator[None]:
    """Give the model a name that only this revision has, while Inseq loads a method: its caches are keyed by name, and
    two models of one name would share one's nearest neighbours or word classes.
    """
    name, model.model_name = model.model_name, identity
    try:
        yield
    finally:
        model.model_name = name


# Embeddings


@torch.no_grad()
def check_embeddings(model: HuggingfaceModel) -> None:
    """Refuse a model whose logits differ when it is given its own embeddings instead of ids, as Inseq gives them.

    MarianMT, Pegasus and FSMT scale decoder embeddings once more although Inseq has scaled them already, and so every
    score would be silently wrong. Raises `UnsupportedByModel`.
    """
    network = model.model
    size = int(network.get_input_embeddings().num_embeddings)
    # Not the pad token: some families count positions from it, which embeddings cannot tell.
    special = {*model.special_tokens_ids, network.config.pad_token_id}
    ids = torch.tensor([[index for index in range(size) if index not in special][:4]], device=model.device)
    mask = torch.ones_like(ids)
    by_embeddings = {"inputs_embeds": model.embed_ids(ids), "attention_mask": mask}
    by_ids = {"input_ids": ids, "attention_mask": mask}
    if model.is_encoder_decoder:
        by_embeddings |= {"decoder_inputs_embeds": model.embed_ids(ids, as_targets=True)}
        by_ids |= {"decoder_input_ids": ids}
    expected, found = network(**by_ids).logits.float(), network(**by_embeddings).logits.float()
    scale = expected.abs().max().clamp_min(1e-6)
    if (difference := (expected - found).abs().max()) > 1e-3 * scale:
        raise UnsupportedByModel(
            f"{type(network).__name__} computes other logits from its embeddings than from its token ids (off by "
            f"{difference:.2g} where they are about {scale:.2g}), so Inseq's scores for it would be wrong."
        )

"""ReAGent's word classes: its replacement tokens share the class of the token that they replace."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import nltk
import torch
from inseq.attr.feat import FeatureAttribution
from inseq.attr.feat.ops.reagent_core.token_sampler import POSTagTokenSampler
from inseq.utils import INSEQ_ARTIFACTS_CACHE
from transformers import PreTrainedTokenizerBase

from attribution.corrections.registry import Ledger, declare

WORD_CLASSES = declare(
    "reagent_word_classes",
    reason="reagent downloads a tagger model at run time, under a name that nltk no longer has.",
    remedy="Word classes come from patterns (nltk's RegexpTagger) and need no data.",
    proof="test_corrections_methods.py::test_reagent_needs_no_download",
)
ADDED_TOKENS = declare(
    "reagent_added_tokens",
    reason="reagent fails with IndexError on tokens behind the tokenizer's vocab_size, such as Llama 3's BOS.",
    remedy="Added tokens are a word class of their own.",
    proof="test_corrections_methods.py::test_reagent_with_added_tokens",
)

# These patterns are nltk's own way to tag without data (Bird et al., 2009, chapter 5); a coarse class is enough.
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
    """Token ids by word class, for ReAGent's replacements: every id of the base vocabulary once."""
    classes: dict[str, list[int]] = defaultdict(list)
    words = [tokenizer.decode([index]).strip() for index in range(tokenizer.vocab_size)]
    for index, (_, tag) in enumerate(_TAGGER.tag(words)):
        classes[tag].append(index)
    return dict(classes)


def seed_word_classes(tokenizer: PreTrainedTokenizerBase, identity: str) -> None:
    """Put the word classes where Inseq looks for them before it would download a tagger."""
    POSTagTokenSampler.build_pos_mapping_from_vocab.__wrapped__  # noqa: B018 - fails loudly if Inseq changes its cache
    file = INSEQ_ARTIFACTS_CACHE / "pos_tag_sampler_cache" / f"{identity}.pkl"
    if not file.exists():
        _write_cache(file, word_classes(tokenizer))


def correct_added_tokens(
    method: FeatureAttribution, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, ledger: Ledger
) -> None:
    """Give the tokens behind `vocab_size` a class of their own in a loaded `reagent`'s tables, where `ids` have any."""
    base, size = int(tokenizer.vocab_size), len(tokenizer)
    if int(ids.max()) < base or not ledger.apply(ADDED_TOKENS):
        return
    # The one sampler that all of the method's parts share.
    sampler = method.method.rationalizer.importance_score_evaluator.token_replacer.sampler
    added = torch.arange(base, size, device=sampler.id2pos.device)
    sampler.id2pos = torch.cat([sampler.id2pos, torch.full_like(added, len(sampler.num_ids_per_pos))])
    counts, offsets = sampler.num_ids_per_pos, sampler.offsets
    sampler.num_ids_per_pos = torch.cat([counts, counts.new_tensor([size - base])])
    sampler.offsets = torch.cat([offsets, offsets.new_tensor([int(counts.sum())])])
    sampler.compact_idx = torch.cat([sampler.compact_idx, added])


def _write_cache(file: Path, content: Any) -> None:
    """Inseq's cache format is a pickle; the file is ours, never a client's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_bytes(pickle.dumps(content))
    temporary.rename(file)

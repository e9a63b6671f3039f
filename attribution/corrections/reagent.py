"""Word classes for ReAGent, which replaces a token by another of the same class."""

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

from attribution.cancel_points import check_stop
from attribution.corrections.registry import Ledger, declare

WORD_CLASSES = declare(
    "reagent_word_classes",
    reason="reagent downloads a tagger model at run time, under a name that nltk no longer uses.",
    remedy="Word classes come from patterns (nltk's RegexpTagger), which need no download.",
    proof="test_corrections_methods.py::test_reagent_needs_no_download",
)
ADDED_TOKENS = declare(
    "reagent_added_tokens",
    reason="reagent fails with IndexError on token ids beyond the tokenizer's vocab_size, such as Llama 3's BOS.",
    remedy="Added tokens form a word class of their own.",
    proof="test_corrections_methods.py::test_reagent_with_added_tokens",
)
DRAWS = declare(
    "reagent_draws",
    reason="reagent draws a token of a word class in float32, where a draw near 1 is rounded up to the next class, or "
    "behind the last one (IndexError).",
    remedy="Such a draw is the last token of its class.",
    proof="test_corrections_methods.py::test_reagent_draws_within_a_word_class",
)

_CHUNK = 1000  # tokens between two questions whether to stop

# Regular-expression tagging as in Bird et al., 2009, chapter 5; ReAGent needs coarse classes only.
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
    """Token ids by word class; each id of the base vocabulary is in exactly one class."""
    classes: dict[str, list[int]] = defaultdict(list)
    words = []
    for index in range(tokenizer.vocab_size):
        if index % _CHUNK == 0:
            check_stop()
        words.append(tokenizer.decode([index]).strip())
    for index, (_, tag) in enumerate(_TAGGER.tag(words)):
        classes[tag].append(index)
    return dict(classes)


def seed_word_classes(tokenizer: PreTrainedTokenizerBase, identity: str) -> None:
    """Write the word classes to the cache file that Inseq reads before it would download a tagger."""
    POSTagTokenSampler.build_pos_mapping_from_vocab.__wrapped__  # noqa: B018 - AttributeError if Inseq drops its cache
    file = INSEQ_ARTIFACTS_CACHE / "pos_tag_sampler_cache" / f"{identity}.pkl"
    if not file.exists():
        _write_cache(file, word_classes(tokenizer))


def correct_added_tokens(
    method: FeatureAttribution, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, ledger: Ledger
) -> None:
    """Add a class for ids beyond `vocab_size` to a loaded `reagent`'s tables, if `ids` ([1, length]) contain any."""
    base, size = int(tokenizer.vocab_size), len(tokenizer)
    if int(ids.max()) < base or not ledger.apply(ADDED_TOKENS):
        return
    # All parts of the method share this sampler.
    sampler = method.method.rationalizer.importance_score_evaluator.token_replacer.sampler
    added = torch.arange(base, size, device=sampler.id2pos.device)
    sampler.id2pos = torch.cat([sampler.id2pos, torch.full_like(added, len(sampler.num_ids_per_pos))])
    counts, offsets = sampler.num_ids_per_pos, sampler.offsets
    sampler.num_ids_per_pos = torch.cat([counts, counts.new_tensor([size - base])])
    sampler.offsets = torch.cat([offsets, offsets.new_tensor([int(counts.sum())])])
    sampler.compact_idx = torch.cat([sampler.compact_idx, added])


def correct_draws(method: FeatureAttribution, ledger: Ledger) -> None:
    """Have a loaded `reagent` draw within the word class; noted in the ledger where a draw would have been another."""
    replacer = method.method.rationalizer.importance_score_evaluator.token_replacer
    replacer.sampler = _WithinClass(replacer.sampler, ledger)


class _WithinClass:
    """Stands for a `POSTagTokenSampler`, and draws what it draws."""

    def __init__(self, sampler: POSTagTokenSampler, ledger: Ledger) -> None:
        self._sampler, self._ledger = sampler, ledger

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """A token of the same class for each of `input_ids`, in their shape."""
        sampler = self._sampler
        classes = sampler.id2pos[input_ids]
        drawn = torch.rand(input_ids.shape, device=input_ids.device)
        counts, offsets = sampler.num_ids_per_pos[classes], sampler.offsets[classes]
        places, last = (drawn * counts + offsets).long(), (offsets + counts).long() - 1
        if bool((places > last).any()) and self._ledger.apply(DRAWS):
            places = places.minimum(last)
        found: torch.Tensor = sampler.compact_idx[places]
        return found


def _write_cache(file: Path, content: Any) -> None:
    """Write a pickle, which is Inseq's cache format; the content is always ours, never a client's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_bytes(pickle.dumps(content))
    temporary.rename(file)

"""The next-token candidates of a result's steps as plain data: tokens with their texts, probabilities and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inseq.data.attribution import FeatureAttributionSequenceOutput, FeatureAttributionStepOutput
from inseq.models import HuggingfaceModel

from attribution.catalogue import next_token
from attribution.text import readable_tokens
from attribution.text.step_labels import named_tokens

# For each generated token of a sequence its candidates, see `attribution_schema.result.Candidate`.
SequenceCandidates = list[list[dict[str, Any]]]


class CandidateNotes:
    """Names the candidates of one run.

    A tokenizer is not for two threads: `learn` is called in the run's own, and `of_sequence` needs none.
    """

    def __init__(self, model: HuggingfaceModel, most: int, *, clean: bool) -> None:
        """`most`: candidates of each step. `clean`: strip the tokenizer's marks from tokens, as from the text's."""
        self._model = model
        self._most = most
        self._clean = clean
        self._names: dict[int, dict[str, Any]] = {}

    def learn(self, step: FeatureAttributionStepOutput) -> None:
        """Find the names of a finished step's candidates."""
        for row in (step.step_scores or {}).get(next_token.NAME, ()):
            for candidate in next_token.read(row, self._most):
                if candidate.token_id not in self._names:
                    self._names[candidate.token_id] = self._named(candidate.token_id)

    def of_sequence(self, sequence: FeatureAttributionSequenceOutput) -> SequenceCandidates | None:
        """The candidates of a sequence whose steps were learned; None if they were not computed."""
        rows = (sequence.step_scores or {}).get(next_token.NAME)
        if rows is None:
            return None
        return [
            [self._names[each.token_id] | asdict(each) for each in next_token.read(row, self._most)] for row in rows
        ]

    def _named(self, token_id: int) -> dict[str, Any]:
        tokenizer = self._model.tokenizer
        (token,) = named_tokens(tokenizer.convert_ids_to_tokens([token_id]), [token_id])
        (text,), _ = readable_tokens.readable_texts(tokenizer, [token_id])
        (shown,) = self._model.clean_tokens([token]) if self._clean else (token,)
        return {"token": str(shown), "text": text}


def shortened(known: Sequence[SequenceCandidates | None], lengths: Sequence[int]) -> list[SequenceCandidates | None]:
    """The candidates of the first steps of each sequence, as many steps as `lengths` say."""
    return [each and each[:length] for each, length in zip(known, lengths, strict=False)]

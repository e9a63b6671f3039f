"""The two tasks of the bundled models, with the source token on which each answer depends.

Generates sentences; knows nothing of models. The training script uses them as data, and the tests measure how often an
attribution method's top token is the true one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karl", "Lena")
THINGS = ("tea", "milk", "juice", "water", "bread", "rice", "soup", "cake", "fish", "beans", "corn", "plums")

ADJECTIVES = {"red": "rosso", "black": "nero", "small": "piccolo", "old": "vecchio", "new": "nuovo", "long": "lungo"}
NOUNS = {
    "cat": "gatto", "dog": "cane", "boy": "ragazzo", "king": "re", "book": "libro", "tree": "melo", "train": "treno",
    "wolf": "lupo", "fish": "pesce", "hat": "cappello",
}  # fmt: skip
VERBS = {
    "sees": "vede", "wants": "vuole", "finds": "trova", "sells": "vende", "draws": "disegna", "takes": "prende",
    "buys": "compra",
}  # fmt: skip
ARTICLES = {"the": "il", "a": "un"}
ADVERBS = {"today": "oggi", "often": "spesso", "here": "qui"}


@dataclass(frozen=True)
class LookupExample:
    """A prompt of facts, a question about one of them, and the word that answers it."""

    prompt: str
    answer: str  # starts with the space that follows the prompt

    @property
    def completion(self) -> str:
        """The expected output: the answer and a full stop."""
        return f"{self.answer}."


def lookup_lesson(rng: random.Random, questions: int = 6) -> tuple[str, list[int]]:
    """A training text of facts, then questions with answers; and the index of the fact behind each answer."""
    size = rng.randint(2, 4)
    facts = list(zip(rng.sample(NAMES, size), rng.sample(THINGS, size), strict=True))
    asked = [rng.randrange(size) for _ in range(questions)]
    return " ".join(f"{name} likes {thing}." for name, thing in [*facts, *(facts[fact] for fact in asked)]), asked


def lookup_example(rng: random.Random) -> LookupExample:
    """`Anna likes tea. Ben likes milk. Anna likes` -> ` tea`: the answer occurs in the prompt exactly once."""
    size = rng.randint(2, 4)
    names, things = rng.sample(NAMES, size), rng.sample(THINGS, size)
    asked = rng.randrange(size)
    facts = " ".join(f"{name} likes {thing}." for name, thing in zip(names, things, strict=True))
    return LookupExample(prompt=f"{facts} {names[asked]} likes", answer=f" {things[asked]}")


@dataclass(frozen=True)
class PhrasebookExample:
    """An English sentence, its word-by-word Italian translation, and their word alignment.

    `alignment[i]` is the position of the source word that target word `i` translates. Adjectives follow their noun in
    Italian, so the alignment is not the diagonal.
    """

    source: str
    target: str
    alignment: tuple[int, ...]


def phrasebook_example(rng: random.Random) -> PhrasebookExample:
    """`the red cat sees a dog` -> `il gatto rosso vede un cane`, aligned (0, 2, 1, 3, 4, 5)."""
    source: list[str] = []
    target: list[str] = []
    alignment: list[int] = []

    def say(word: str, lexicon: dict[str, str], position: int) -> None:
        target.append(lexicon[word])
        alignment.append(position)

    def noun_phrase() -> None:
        start = len(source)
        article, noun = rng.choice(list(ARTICLES)), rng.choice(list(NOUNS))
        adjective = rng.choice([None, *ADJECTIVES])
        source.extend([article, adjective, noun] if adjective else [article, noun])
        say(article, ARTICLES, start)
        say(noun, NOUNS, len(source) - 1)
        if adjective:
            say(adjective, ADJECTIVES, start + 1)

    noun_phrase()
    verb = rng.choice(list(VERBS))
    source.append(verb)
    say(verb, VERBS, len(source) - 1)
    noun_phrase()
    adverb = rng.choice([None, *ADVERBS])
    if adverb:
        source.append(adverb)
        say(adverb, ADVERBS, len(source) - 1)
    return PhrasebookExample(" ".join(source), " ".join(target), tuple(alignment))

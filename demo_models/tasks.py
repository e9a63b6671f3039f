"""The three tasks of the bundled models, with the source token on which each answer depends.

Generates sentences; knows nothing of models. The training script uses them as data, and the tests measure how often an
attribution method's top token is the true one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karl", "Lena")
THINGS = ("tea", "milk", "juice", "water", "bread", "rice", "soup", "cake", "fish", "beans", "corn", "plums")
CITIES = ("Rome", "Oslo", "Paris", "Cairo", "Lima", "Delhi", "Tokyo", "Bern", "Kyiv", "Quito", "Seoul", "Prague")

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
class Errand:
    """Who went where and what that city sells, and where the facts say so.

    `city_at` is the position of the city in `Ben went to Oslo.`, `thing_at` that of the thing in `Oslo sells milk.`, in
    tokens: every word and full stop is one.
    """

    name: str
    city: str
    thing: str
    city_at: int
    thing_at: int


@dataclass(frozen=True)
class TwoStepExample:
    """A prompt whose answer needs two lookups: a name's city, which the model writes, then what that city sells.

    The first step copies the city from the fact about the asked name (`first_step`); the second copies the thing from the
    fact about that city (`second_step`). Both are positions of tokens in the prompt. No fact has a name and a thing: given
    the chain, the answer depends on the first step's fact no more. So the token `first_step` leads to the answer through
    the chain alone.
    """

    prompt: str
    chain: str  # starts with the space that follows the prompt
    answer: str  # starts with the space that follows the chain
    first_step: int
    second_step: int

    @property
    def completion(self) -> str:
        """The expected output: the chain, the answer and a full stop."""
        return f"{self.chain}{self.answer}."


def two_step_example(rng: random.Random) -> TwoStepExample:
    """`Oslo sells milk. Ben went to Oslo. ... Ben went to` -> ` Oslo and bought milk.`: the facts are in any order."""
    facts, errands = _two_step_facts(rng)
    asked = rng.choice(errands)
    return TwoStepExample(
        prompt=f"{facts} {asked.name} went to",
        chain=f" {asked.city} and bought",
        answer=f" {asked.thing}",
        first_step=asked.city_at,
        second_step=asked.thing_at,
    )


def two_step_lesson(rng: random.Random) -> tuple[str, list[Errand]]:
    """A training text of facts, then a question with its chain and answer about each name; and the errands in that order."""
    facts, errands = _two_step_facts(rng)
    rng.shuffle(errands)
    return " ".join([facts, *(f"{each.name} went to {each.city} and bought {each.thing}." for each in errands)]), errands


def _two_step_facts(rng: random.Random) -> tuple[str, list[Errand]]:
    """Two facts for each of two to four names, in any order; and the errands that they tell."""
    size = rng.randint(2, 4)
    names, cities, things = rng.sample(NAMES, size), rng.sample(CITIES, size), rng.sample(THINGS, size)
    visits = {f"{name} went to {city}.": name for name, city in zip(names, cities, strict=True)}
    sales = {f"{city} sells {thing}.": city for city, thing in zip(cities, things, strict=True)}
    facts = [*visits, *sales]
    rng.shuffle(facts)
    says_at, length = {}, 0  # the position of the last word of the fact about each name and each city
    for fact in facts:
        length += len(fact.split()) + 1  # and the full stop
        says_at[{**visits, **sales}[fact]] = length - 2
    errands = [
        Errand(name, city, thing, says_at[name], says_at[city])
        for name, city, thing in zip(names, cities, things, strict=True)
    ]
    return " ".join(facts), errands


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

"""The words by which a job is found: those of its texts, name, notes, tags, model, methods and id, in SQLite's FTS5.

What a word is, is decided here and nowhere in SQLite: FTS5 gets each job's distinct words, apart from each other. A
search finds the jobs that have all its words, each whole or as the beginning of a longer one. Scripts that are written
without spaces between words (Chinese, Japanese, Thai and others) have each character and each pair of neighbours as
words, as in Lucene's CJK analyzer. Works on an open connection; the store opens the transaction.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

_MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
_WORD = re.compile(rf"(?:[^\W_]+|[{_MARKS}])+")
_ASCII_WORD = re.compile("[a-z0-9]+")  # the same of ASCII alone, three times as fast
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+)"
)
_LONGEST_WORD = 40  # characters; longer ones (an encoded file, say) are found by their beginning
_TEXTS = ("input_text", "messages", "generated_text")
FIELDS = {*_TEXTS, "name", "notes", "tags", "model", "method", "methods"}  # of a request, in which words are looked for
_MOST_TEXT = 50_000  # characters of a job's texts that are searched, so that accepting a long text stays fast

# The words are stored beside the index, so that FTS5 removes exactly what it added, also with a newer rule of words.
job_words = sa.table("job_words", sa.column("rowid", sa.Integer), sa.column("words", sa.Text))
CREATE = "CREATE VIRTUAL TABLE job_words USING fts5(words, tokenize = 'ascii', detail = none, columnsize = 0)"
_INSERT = sa.text("INSERT INTO job_words (rowid, words) VALUES (:seq, :words)")
_UPDATE = sa.text("UPDATE job_words SET words = :words WHERE rowid = :seq")
_DELETE = sa.text("DELETE FROM job_words WHERE rowid = :seq")


def add(connection: sa.Connection, words_by_seq: Mapping[int, str]) -> None:
    """Make new jobs findable. words_by_seq: what `words_of` returns, by the number of the job."""
    if words_by_seq:
        connection.execute(_INSERT, [{"seq": seq, "words": words} for seq, words in words_by_seq.items()])


def change(connection: sa.Connection, seq: int, words: str) -> None:
    """Replace the words of a job."""
    connection.execute(_UPDATE, {"seq": seq, "words": words})


def remove(connection: sa.Connection, seq: int) -> None:
    """Forget the words of a deleted job."""
    connection.execute(_DELETE, {"seq": seq})


def has_words(search: str) -> sa.ColumnElement[bool]:
    """Return the condition on `job_words` that a job has all the words of this search, which must have some."""
    terms = [f'"{word}"' if is_whole else f'"{word}"*' for word, is_whole in _parts(search)]
    condition: sa.ColumnElement[bool] = sa.literal_column("job_words").op("MATCH")(" ".join(dict.fromkeys(terms)))
    return condition


def is_searchable(search: str) -> bool:
    """Return whether a search has a word; one of punctuation alone has none, and finds nothing."""
    return next(_parts(search), None) is not None


def words_of(job_id: str, request: Mapping[str, Any]) -> str:
    """Return the distinct words of a job, with spaces between. request: at least `FIELDS` of it, and of any content."""
    tags = request.get("tags")
    labels: list[Any] = [request.get("name"), request.get("notes"), *(tags.items() if isinstance(tags, dict) else ())]
    labels += [request.get("model"), request.get("method"), request.get("methods")]
    words = dict.fromkeys(word for label in _texts([job_id, *labels]) for word in _indexed(label))
    left = _MOST_TEXT
    for text in _texts([request.get(name) for name in _TEXTS]):
        words |= dict.fromkeys(_indexed(text[:left]))
        left -= len(text)
        if left <= 0:
            break
    return " ".join(words)


def _texts(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, in order; of objects the values alone."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _indexed(text: str) -> Iterator[str]:
    """Yield the words by which a text is found; few of them twice."""
    for word in dict.fromkeys(_words(text)):
        if word.isascii():
            yield word[:_LONGEST_WORD]
            continue
        for run, is_unspaced in _runs(word):
            if is_unspaced:
                yield from run
                yield from _pairs(run)
            else:
                yield run[:_LONGEST_WORD]


def _parts(search: str) -> Iterator[tuple[str, bool]]:
    """Yield the words of a search, and whether each must be whole: a single letter begins too many words."""
    for word in _words(search):
        for run, is_unspaced in _runs(word):
            if is_unspaced and len(run) > 1:
                yield from ((pair, True) for pair in _pairs(run))
            else:
                yield run[:_LONGEST_WORD], len(run) == 1


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)


def _runs(word: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a word, and whether each is of characters that are written without spaces."""
    return ((run, index % 2 == 1) for index, run in enumerate(_UNSPACED.split(word)) if run)


def _pairs(run: str) -> Iterable[str]:
    return (run[index : index + 2] for index in range(len(run) - 1))

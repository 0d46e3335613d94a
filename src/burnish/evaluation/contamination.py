"""Whether the items of an evaluation stand in the data that was trained on.

Texts are compared in lower case, without punctuation, word by word. Every text in a training row counts, in whatever
field it stands; of an item, what is asked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.rows import Told, read_rows, tell_nobody
from burnish.errors import DataError
from burnish.evaluation.store import EvalStore

NGRAM = 13  # words in a row, as GPT-3's authors chose (Brown et al. 2020, appendix C)
NEAR_AT = 0.7
_SHORTEST = 5  # fewer words in a row stand anywhere by chance
_SHINGLE = 3
_NO_WORD = re.compile(r"[^\w\s]|_")
_QUESTION_FIELDS = ("prompt", "question", "problem", "input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Ids of the items that stand in the training texts.

    `exact`: the whole text is one. `by_ngram`: `ngram` words in a row stand in one; an item with fewer words, all of
    them. `near`: the Jaccard index of the sets of three words in a row is at least `near_at` with one of them.
    """

    num_items: int
    num_train: int
    exact: tuple[str, ...]
    by_ngram: tuple[str, ...]
    near: tuple[str, ...]
    ngram: int = NGRAM
    near_at: float = NEAR_AT

    def flagged(self) -> dict[str, list[str]]:
        """How each item that was found was found."""
        found: dict[str, list[str]] = defaultdict(list)
        for how, names in (("exactly", self.exact), (f"{self.ngram} words", self.by_ngram), ("nearly", self.near)):
            for name in names:
                found[name].append(how)
        return dict(found)


def find_contamination(
    train_texts: Iterable[str], items: Mapping[str, str], *, ngram: int = NGRAM, near_at: float = NEAR_AT
) -> Contamination:
    """Look for each item, a text by its id, in the training texts, which are read once and not kept.

    Raises:
        DataError: there are no items.
    """
    if not items:
        raise DataError("contamination: there are no items to look for")
    index = _Index(items, ngram)
    exact, by_ngram, near = set[str](), set[str](), set[str]()
    num_train = 0
    for text in train_texts:
        num_train += 1
        words = words_of(text)
        exact |= index.equal(words)
        by_ngram |= index.sharing_words(words)
        near |= index.near(words, near_at)
    ordered = [tuple(name for name in items if name in found) for found in (exact, by_ngram, near)]
    return Contamination(
        num_items=len(items),
        num_train=num_train,
        exact=ordered[0],
        by_ngram=ordered[1],
        near=ordered[2],
        ngram=ngram,
        near_at=near_at,
    )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _NO_WORD.sub("", text.lower()).split()


class _Index:
    """The items by their words, by their runs of words, and by their shingles."""

    def __init__(self, items: Mapping[str, str], ngram: int) -> None:
        self.whole: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self.runs: dict[int, dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
        self.shingles: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.num_shingles: dict[str, int] = {}
        for name, text in items.items():
            words = words_of(text)
            self.whole[tuple(words)].add(name)
            length = min(ngram, len(words))
            if length >= _SHORTEST:
                for run in _runs(words, length):
                    self.runs[length][run].add(name)
            own = set(_runs(words, _SHINGLE))
            self.num_shingles[name] = len(own)
            for shingle in own:
                self.shingles[shingle].append(name)

    def equal(self, words: Sequence[str]) -> set[str]:
        return self.whole.get(tuple(words), set()) if words else set()

    def sharing_words(self, words: Sequence[str]) -> set[str]:
        found = set[str]()
        for length, runs in self.runs.items():
            for run in _runs(words, length):
                found |= runs.get(run, set())
        return found

    def near(self, words: Sequence[str], near_at: float) -> set[str]:
        own = set(_runs(words, _SHINGLE))
        shared = Counter(name for shingle in own for name in self.shingles.get(shingle, ()))
        return {
            name for name, count in shared.items() if count >= near_at * (len(own) + self.num_shingles[name] - count)
        }


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def train_texts(source: str, told: Told = tell_nobody) -> Iterator[str]:
    """Every text in every row of a JSON or JSONL file, in whatever field it stands.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is not JSON.
    """
    for _, row in read_rows("the training data", source, told):
        yield from _leaves(row)


def file_items(source: str) -> dict[str, str]:
    """What the rows of a file ask, by `id` where they have one and else by their number.

    Raises:
        ConfigError: there is no such file.
        DataError: a row asks nothing, or an id stands there twice.
    """
    items: dict[str, str] = {}
    for number, (place, row) in enumerate(read_rows("the evaluation", source)):
        name = str(row.get("id", number))
        if name in items:
            raise DataError(f"{place}: id {name!r} stands there twice")
        items[name] = _question(row, place)
    return items


def store_items(store: EvalStore) -> dict[str, str]:
    """What the items of a store ask.

    Raises:
        DataError: it was imported without its questions.
    """
    return {item["id"]: _question(item, f"{store.path}, item {item['id']}") for item in store.items()}


def _question(row: Mapping[str, Any], place: str) -> str:
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        asked = [str(each.get("content")) for each in messages if each.get("role") not in ("system", "assistant")]
        return "\n".join(asked)
    for name in _QUESTION_FIELDS:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise DataError(f"{place}: asks nothing: it has neither messages nor {', '.join(_QUESTION_FIELDS)}")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)

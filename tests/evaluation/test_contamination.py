import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.errors import DataError
from burnish.evaluation.contamination import file_items, find_contamination, train_texts, words_of

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
LONG = "a farmer has twelve brown hens and every hen lays two large eggs on each day of the week"


def test_exactly_but_for_case_and_punctuation() -> None:
    found = find_contamination(["What's 2 + 2?", "other"], {"x": "whats 2  2", "y": "what is 2"})
    assert found.exact == ("x",) and found.num_train == 2 and found.num_items == 2


def test_thirteen_words_in_a_row_and_not_twelve() -> None:
    words = LONG.split()
    inside = "Before it. " + " ".join(words[2:15]) + " and after it."
    too_few = "Before it. " + " ".join(words[2:14]) + " and after it."
    assert find_contamination([inside], {"x": LONG}).by_ngram == ("x",)
    assert find_contamination([too_few], {"x": LONG}).by_ngram == ()


def test_an_item_of_few_words_counts_when_all_of_them_stand_there() -> None:
    item = {"x": "What is seven times eight?", "tiny": "What is it"}
    assert find_contamination(["Tell me: what is seven times eight? I ask what is it."], item).by_ngram == ("x",)
    assert find_contamination(["What is seven times nine?"], item).by_ngram == ()


def test_a_text_with_a_changed_word_is_nearly_there() -> None:
    changed = LONG.replace("brown", "red")
    found = find_contamination([changed], {"x": LONG, "y": "something else that shares no words with it at all"})
    # 16 and 16 shingles of three words in a row, of which the three with the changed word differ
    assert found.near == ("x",) and found.exact == ()
    shingles = len(LONG.split()) - 2
    exactly = (shingles - 3) / (shingles + 3)
    assert find_contamination([changed], {"x": LONG}, near_at=exactly).near == ("x",)
    assert find_contamination([changed], {"x": LONG}, near_at=exactly + 1e-6).near == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=18).map(" ".join), max_size=4), st.data())
def test_against_a_naive_search(texts: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.lists(st.sampled_from("abcd"), max_size=18).map(" ".join), min_size=1, max_size=4))
    items = {str(i): text for i, text in enumerate(asked)}
    found = find_contamination(texts, items, ngram=7, near_at=0.5)

    def runs(words: list[str], n: int) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    for name, text in items.items():
        words = words_of(text)
        n = min(7, len(words))
        trains = [words_of(each) for each in texts]
        assert (name in found.exact) == any(words and words == train for train in trains)
        assert (name in found.by_ngram) == (n >= 5 and any(runs(words, n) & runs(train, n) for train in trains))
        pairs = [(runs(words, 3), runs(train, 3)) for train in trains]
        assert (name in found.near) == any(a & b and len(a & b) / len(a | b) >= 0.5 for a, b in pairs)


def test_every_text_of_a_training_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "one"}], "chosen": ["two"], "n": 3}) + "\n")
    assert list(train_texts(str(path))) == ["user", "one", "two"]


def test_what_rows_ask(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    turns = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "b?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"question": "a?"}, {"id": "x", "messages": turns})))
    assert file_items(str(path)) == {"0": "a?", "x": "b?"}
    path.write_text('{"text": "a?"}\n')
    with pytest.raises(DataError, match="asks nothing"):
        file_items(str(path))
    with pytest.raises(DataError, match="no items to look for"):
        find_contamination(["a"], {})


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="the data of shared/data is not here")
def test_gsm8k() -> None:
    found = find_contamination(train_texts(str(GSM8K / "train.jsonl")), file_items(str(GSM8K / "test.jsonl")))
    assert (len(found.exact), len(found.by_ngram), found.num_items) == (0, 3, 1319)

import json
from pathlib import Path

import pytest

from burnish.algorithms.sft import ConversationReader
from burnish.config.schema import DataConfig
from burnish.data import formats
from burnish.data.chat import Chat
from burnish.data.examples import load_examples
from burnish.data.preferences import PreferenceReader
from burnish.errors import ConfigError, DataError
from burnish.models.tiny import make_byte_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENIZER = make_byte_tokenizer()
CHAT = Chat(tokenizer=TOKENIZER, stop_token_ids=(2,))
READER = PreferenceReader(system_prompt=None)


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def config(source: str, **changes) -> DataConfig:
    return DataConfig(source=source, **{"num_held_out": 2, **changes})


def pair(index: int, **more) -> dict:
    return {"prompt": f"question {index}", "chosen": f"good {index}", "rejected": f"bad {index}", **more}


def load(source: str, to_example=READER.pair, **changes):
    folder = Path(source).parent / "kept"
    return load_examples(config(source, **changes), CHAT, to_example, context_length=512, folder=folder, say=print)


def text(ids) -> str:
    return TOKENIZER.decode(list(ids))


def test_a_pair_is_chosen_then_rejected(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", *map(pair, range(5))))
    assert (len(split.train), len(split.held_out)) == (3, 2)
    for example in (*split.train, *split.held_out):
        chosen, rejected = example.branches
        assert text(chosen.token_ids).startswith("good") and text(rejected.token_ids).startswith("bad")
        assert (chosen.label, rejected.label) == (1.0, -1.0) and (chosen.score, rejected.score) == (1.0, 0.0)
        assert text(chosen.token_ids).endswith("<|im_end|>")
        assert text(example.prompt_ids).endswith("<|im_start|>assistant\n")


def test_a_held_out_prompt_is_never_trained_on_and_has_one_item(tmp_path: Path) -> None:
    rows = [{**pair(index), "chosen": f"good {other}"} for index in range(4) for other in range(3)]
    split = load(write(tmp_path / "a.jsonl", *rows))
    held_out = {example.id for example in split.held_out}
    assert len(held_out) == len(split.held_out) == 2
    assert not held_out & {example.id for example in split.train}
    assert len(split.train) == 6


def test_the_split_ignores_the_system_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *map(pair, range(8)))
    plain = load(source)
    other = load(source, PreferenceReader(system_prompt="Be good.").pair)
    assert [example.id for example in plain.held_out] == [example.id for example in other.held_out]
    assert "Be good." in text(other.train[0].prompt_ids)


def test_answers_that_are_the_same_are_left_out_and_counted(tmp_path: Path) -> None:
    same = {"prompt": "question", "chosen": "yes", "rejected": "yes"}
    split = load(write(tmp_path / "a.jsonl", *map(pair, range(5)), same, same))
    assert split.left_out == {"the answers are the same": 2}
    assert "2 rows left out: the answers are the same" in split.summary()
    with pytest.raises(DataError, match="most examples cannot be used; left out: 2 the answers are the same"):
        load(write(tmp_path / "b.jsonl", pair(0), same, same))


def test_long_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", *map(pair, range(5)), pair(6, chosen="x" * 600)))
    assert split.left_out == {"longer than 512 tokens": 1}
    with pytest.raises(DataError, match="most examples cannot be used"):
        load(write(tmp_path / "a.jsonl", *map(pair, range(5))), max_tokens=20)


GRADED = {
    "prompt": "q",
    "responses": [{"content": "a", "score": 1}, {"content": "b", "score": 3}, {"content": "c", "score": 2}],
}


def test_graded_answers() -> None:
    example = READER.graded(CHAT, GRADED, "here")
    assert [branch.score for branch in example.branches] == [1.0, 3.0, 2.0]
    best, worst = READER.pair(CHAT, GRADED, "here").branches
    assert (best.score, worst.score, best.label, worst.label) == (3.0, 1.0, 1.0, -1.0)


def test_labelled_answers() -> None:
    good = READER.labelled(CHAT, {"prompt": "q", "completion": "a", "label": True}, "here")
    assert [branch.label for branch in good.branches] == [1.0]
    assert [branch.label for branch in READER.labelled(CHAT, pair(1), "here").branches] == [1.0, -1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "line 3: needs a non-empty 'prompt'"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "line 3: needs a non-empty 'prompt'"),
        ({"prompt": "q", "chosen": "a"}, "line 3: needs 'chosen' and 'rejected'"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "line 3: needs a non-empty 'chosen'"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, "end with the assistant's"),
        (pair(1, weight=-1), "'weight' must not be negative"),
        (pair(1, chosen_score=1, rejected_score=2), "has a lower score"),
        (pair(1, chosen_score="high", rejected_score=2), "'chosen_score' must be a finite number"),
        ({"prompt": "q", "responses": [{"content": "a", "score": 1}]}, "at least two answers"),
        ("[]", "line 3: a row must be a JSON object"),
        ("{", "line 3: not valid JSON"),
    ],
)
def test_faulty_pairs_are_named_by_their_line(tmp_path: Path, row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.jsonl", pair(0), pair(1), row))


def test_margins_need_grades() -> None:
    with pytest.raises(DataError, match="needs 'chosen_score' and 'rejected_score'"):
        PreferenceReader(system_prompt=None, needs_grades=True).pair(CHAT, pair(1), "here")


def test_a_label_must_be_true_or_false() -> None:
    with pytest.raises(DataError, match="'label' must be true or false, got 1"):
        READER.labelled(CHAT, {"prompt": "q", "completion": "a", "label": 1}, "here")


def example_of(row: dict, only_last: bool = False):
    return ConversationReader(system_prompt=None, only_last=only_last).example(CHAT, row, "here")


def test_rows_of_supervised_data() -> None:
    first = example_of({"prompt": "q", "completion": "a"})
    second = example_of({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    assert first == second
    with pytest.raises(DataError, match="needs 'messages', or 'prompt' and 'completion'"):
        example_of({"text": "q"})


def test_transforms(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rows.py").write_text(
        "def twice(row):\n"
        "    if row['q'] == 0:\n        return None\n"
        "    pair = {'prompt': f\"p{row['q']}\", 'chosen': 'a', 'rejected': 'b'}\n"
        "    return [pair, {**pair, 'chosen': 'c'}]\n"
        "def broken(row):\n    return row['nothing']\n"
        "def wrong(row):\n    return 3\n"
    )
    source = write(tmp_path / "a.jsonl", *({"q": index} for index in range(5)))
    split = load(source, transform="own_rows:twice")
    assert len(split.train) == 4 and split.left_out == {"data.transform left them out": 1}
    with pytest.raises(DataError, match=r"line 1: data\.transform raised KeyError: 'nothing'"):
        load(source, transform="own_rows:broken")
    with pytest.raises(DataError, match=r"line 1: data\.transform must return a dict, a list of them, or None, got 3"):
        load(source, transform="own_rows:wrong")
    with pytest.raises(ConfigError, match=r"data\.transform: cannot import"):
        load(source, transform="own_rows:absent")


def test_a_list_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([pair(index) for index in range(5)]))
    assert len(load(str(path)).train) == 3
    path.write_text("{}")
    with pytest.raises(DataError, match="must hold a list of rows, got dict"):
        load(str(path))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the public datasets are not beside the checkout")
@pytest.mark.parametrize(
    ("file", "transform", "to_example", "num_rows"),
    [
        ("pref_pandalm/testset-v1.json", "pandalm", READER.pair, 500),
        ("pref_qa_feedback/dev_feedback.json", "qa_feedback", READER.pair, 2000),
        ("pref_dpo_demo/dpo_en_demo.json", "sharegpt", READER.pair, 240),
        ("gsm8k/test.jsonl", "gsm8k", lambda chat, row, place: example_of(row), 1200),
    ],
)
def test_public_datasets_as_they_are(tmp_path: Path, file: str, transform: str, to_example, num_rows: int) -> None:
    changes = {"transform": f"burnish.data.formats:{transform}", "num_held_out": 50}
    split = load_examples(
        config(str(DATA / file), **changes), CHAT, to_example, context_length=100_000, folder=tmp_path, say=print
    )
    assert len(split.train) > num_rows


def test_formats_by_hand() -> None:
    row = {"instruction": "Sum", "input": "1 2", "output": "3", "response1": "3", "response2": "4"}
    assert formats.alpaca(row) == {"prompt": "Sum\n\n1 2", "completion": "3"}
    votes = {"annotator1": 1, "annotator2": 2, "annotator3": 1}
    assert formats.pandalm(row | votes) == {"prompt": "Sum\n\n1 2", "chosen": "3", "rejected": "4"}
    assert formats.pandalm(row | {"annotator1": 0, "annotator2": 1, "annotator3": 2}) is None
    talk = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}
    assert formats.sharegpt(talk)["messages"][1] == {"role": "assistant", "content": "yes"}
    question = {"question": "q", "passages": [["t", "p"]], "preference": [1, 2, 0, 0, 0, 0]}
    rows = formats.qa_feedback(question | {f"prediction {index}": f"a{index}" for index in range(1, 5)})
    assert [(each["chosen"], each["rejected"]) for each in rows] == [("a1", "a2"), ("a3", "a1")]

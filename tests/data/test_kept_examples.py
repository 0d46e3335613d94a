"""What is read once and kept: the same examples, split and order as if everything were in memory."""

import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.algorithms.sft import ConversationReader
from burnish.config.schema import DataConfig
from burnish.data import examples as examples_module
from burnish.data.chat import Chat
from burnish.data.example_file import ExampleFile, ExampleWriter, Lazy, as_json
from burnish.data.examples import ExampleSplit, load_examples
from burnish.data.order import EndlessOrder
from burnish.data.preferences import PreferenceReader
from burnish.errors import DataError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Branch, Example
from burnish.reproducibility.seeds import seed_for

CHAT = Chat(tokenizer=make_byte_tokenizer(), stop_token_ids=(2,))


def turns(index: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"hello {index % 17}"},
            {"role": "assistant", "content": "yes " * (index % 5 + 1)},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": f"no {index}"},
        ]
    }


def pair(index: int) -> dict[str, Any]:
    rejected = f"bad {index}" if index % 13 else f"good {index}"
    return {
        "prompt": f"question {index % 31}",
        "chosen": f"good {index}",
        "rejected": rejected,
        "weight": 1 + index / 8,
    }


def graded(index: int) -> dict[str, Any]:
    responses = [{"content": f"a{index}", "score": index / 7}, {"content": "bb", "score": 0.1 + index}]
    if index % 50:
        responses.append({"content": "c" * (index % 50), "score": -1})
    return {"prompt": f"question {index % 31}", "responses": responses}


def labelled(index: int) -> dict[str, Any]:
    return {"prompt": f"question {index % 31}", "completion": "né" * (index % 40 + 1), "label": index % 3 == 0}


def write(path: Path, row: Callable[[int], dict[str, Any]], indices: range) -> str:
    path.write_text("".join(json.dumps(row(index)) + "\n" for index in indices))
    return str(path)


# name -> (row, what reads it, settings, sha256 of what is trained on and of what is held out, summary), as they were
# when every example was held in memory
BEFORE: dict[str, tuple[Any, ...]] = {
    "turns": (
        turns,
        ConversationReader(system_prompt="Be good.", only_last=False).example,
        {},
        "8707e19bd7e3063a43d2442dd1624804f169c418e56b63646a74cae56f5b927f",
        "a3f7435f0226015e2de5758dd8a767b18c87ae009a28bc8fd5889873b7b062c0",
        "85 to train on, 5 held out, longest 96 tokens",
    ),
    "last turns": (
        turns,
        ConversationReader(system_prompt=None, only_last=True).example,
        {},
        "84a6cd24273478f6ce63cc2e2722f1a965de7da79ca02b20b201d71b2005b27d",
        "7f913205a166e4ceabc3843c6a7d6b79a3b2a4767b1427e825484ed7bf31fa0e",
        "85 to train on, 5 held out, longest 78 tokens",
    ),
    "pairs": (
        pair,
        PreferenceReader(system_prompt=None).pair,
        {},
        "d8d20dda8918038ec39ee9887d208156f3188265fa3ce513e0f8894723aac3c1",
        "cdcc96c67b7fb952ce83c3f9d109cf1dc87531c106ce2bb8119ef16930974107",
        "93 to train on, 5 held out, longest 39 tokens; 10 rows left out: the answers are the same",
    ),
    "graded": (
        graded,
        PreferenceReader(system_prompt=None).graded,
        {"max_tokens": 75},
        "a4e205dfad5bdbf432e0a3309188bea41336d7688d88242acb32d1cecd19b4e7",
        "29ac1a789d1fc90d8e20788e83a213063112afaf4578295f42e62bface72d2f1",
        "93 to train on, 5 held out, longest 75 tokens; 9 rows left out: longer than 75 tokens",
    ),
    "labelled": (
        labelled,
        PreferenceReader(system_prompt="Hm.").labelled,
        {"max_tokens": 140},
        "8eb5e00779451ed375f0004827c6768d911e2ad425c08f025518b1c0ccffc1f0",
        "47ec6014602bc146c7e57e28b840bb79f935cf2e388b9ead471e6c686f037c2d",
        "80 to train on, 5 held out, longest 140 tokens; 24 rows left out: longer than 140 tokens",
    ),
    "held out apart": (
        pair,
        PreferenceReader(system_prompt=None).pair,
        {"held_out_source": "apart.jsonl"},
        "3089e572432a506b305b3c8a30872acee63c8ea22971ed59ec5930ad2c7526d1",
        "5f73c87e014ac31d2c1892cfdb34bd10164ccfb781b84bb7b114023c72abbb5f",
        "93 to train on, 5 held out, longest 39 tokens; 12 rows left out: the answers are the same",
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_examples_split_and_record_are_what_they_were(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    row, to_example, changes, train, held_out, summary = BEFORE[name]
    write(tmp_path / "apart.jsonl", row, range(20, 70, 2))
    config = DataConfig(source=write(tmp_path / "rows.jsonl", row, range(120)), num_held_out=5, **changes)
    read, found = (
        load_examples(config, CHAT, to_example, context_length=512, folder=tmp_path / "kept", say=print)
        for _ in range(2)
    )
    for split in (read, found):
        assert {key: side["sha256"] for key, side in split.record()["examples"].items()} == {
            "train": train,
            "held_out": held_out,
        }
        assert split.summary() == summary
        for side, digest in ((split.train, train), (split.held_out, held_out)):
            text = json.dumps([asdict(example) for example in side])
            assert hashlib.sha256(text.encode()).hexdigest() == digest


whole_numbers = st.lists(st.integers(0, 9) | st.integers(0, 2**31 - 2), max_size=6).map(tuple)
floats = st.floats(allow_nan=False, allow_infinity=False)
branches = st.builds(
    Branch, token_ids=whole_numbers, scored=st.none() | whole_numbers, label=floats, score=floats, weight=floats
)
any_example = st.builds(
    Example, id=st.text(max_size=5), prompt_ids=whole_numbers, branches=st.lists(branches, max_size=3).map(tuple)
)


@settings(max_examples=40)
@given(st.lists(any_example, min_size=1, max_size=5))
def test_a_file_gives_back_what_was_written(tmp_path_factory, written: list[Example]) -> None:
    path = tmp_path_factory.mktemp("file") / "a.examples"
    order = np.arange(len(written))[::-1]
    with path.open("w+b") as file:
        writer = ExampleWriter(file)
        for example in written:
            writer.add(example)
        assert list(writer.examples(order)) == written[::-1]
        writer.finish(order, {"note": "é"})
    kept = ExampleFile(path)
    path.unlink()  # an open file does not need its name
    assert [kept.example(index) for index in range(len(written))] == written[::-1]
    assert kept.num_tokens.tolist() == [example.num_tokens for example in written[::-1]]
    assert kept.facts == {"note": "é", "num_examples": len(written)}
    assert [as_json(example) for example in written] == [json.dumps(asdict(example)) for example in written]


def test_no_field_is_forgotten() -> None:
    """A field that these records get must be written to the file too."""
    assert [field.name for field in fields(Example)] == ["id", "prompt_ids", "branches"]
    assert [field.name for field in fields(Branch)] == ["token_ids", "scored", "label", "score", "weight"]


def test_lazy_items_are_made_each_time() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index * index

    items = Lazy(make, np.array([4, 1, 3, 0]))
    part = items[1:3]
    assert made == [] and len(items) == 4 and len(part) == 2
    assert (part[1], items[-1], items[0]) == (9, 0, 16) and made == [3, 0, 4]
    assert list(items) == [16, 1, 9, 0]
    with pytest.raises(IndexError):
        items[4]


def test_the_order_is_what_it_was() -> None:
    order = EndlessOrder(range(7), seed=3)
    taken = [order.next(5) for _ in range(4)]
    assert taken == [[2, 1, 5, 4, 6], [3, 0, 1, 0, 2], [5, 3, 6, 4, 6], [2, 4, 1, 3, 0]] and order.position == 20
    assert EndlessOrder(range(1000), seed=1, position=1998).next(4) == [244, 544, 827, 201]
    assert order.next(0) == []
    first = np.random.default_rng(seed_for(1, "prompt order", 0)).permutation(1000)
    assert EndlessOrder(range(1000), seed=1).next_indices(1000).tolist() == first.tolist()


def test_an_epoch_is_shuffled_once(monkeypatch) -> None:
    shuffled: list[int] = []
    monkeypatch.setattr("burnish.data.order.seed_for", lambda seed, purpose, epoch: shuffled.append(epoch) or epoch)
    order = EndlessOrder(range(10), seed=0)
    for _ in range(10):
        order.next(3)
    assert shuffled == [0, 1, 2]


READ: list[str] = []


@dataclass(frozen=True)
class Letters:
    """Reads without a tokenizer: a token for every letter. `mark` is a setting."""

    mark: str = ""

    def example(self, chat: Chat, row: dict[str, Any], place: str) -> Example:
        READ.append(place)
        if "q" not in row:
            raise DataError(f"{place}: no q")
        branch = Branch(token_ids=tuple(map(ord, row["a"] + self.mark)), scored=tuple(range(len(row["a"]))))
        return Example(id=row["q"], prompt_ids=tuple(map(ord, row["q"])), branches=(branch,))


@pytest.fixture
def load(tmp_path: Path, monkeypatch) -> Callable[..., ExampleSplit]:
    """Loads `rows.jsonl`, which a test may change, and counts what is read and said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a module that changes within a second
    rows = "".join(json.dumps({"q": f"question {index}", "a": f"answer {index}"}) + "\n" for index in range(300))
    (tmp_path / "rows.jsonl").write_text(rows)

    def load(reader: Letters = Letters(), chat: Chat = CHAT, **changes: Any) -> ExampleSplit:  # frozen
        READ.clear()
        load.said.clear()
        for name in ("own_rows", "own_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        config = DataConfig(**{"source": "rows.jsonl", "num_held_out": 5, **changes})
        folder = tmp_path / "kept"
        told = lambda *words: load.told.append(words)  # noqa: E731
        say = load.said.append
        return load_examples(config, chat, reader.example, context_length=100, folder=folder, say=say, told=told)

    load.said, load.told = [], []
    return load


def test_what_was_read_is_not_read_again(load, tmp_path: Path) -> None:
    first = load()
    assert len(READ) == 300
    again = load()
    assert len(READ) == 100  # to see that they are made as before
    assert list(again.train) == list(first.train) and again.held_out == first.held_out
    (tmp_path / "elsewhere").mkdir()
    os.rename("rows.jsonl", "elsewhere/other_name.jsonl")
    load(source="elsewhere/other_name.jsonl", batch_size=64)  # neither decides what the examples are
    assert len(READ) == 100 and load.said == []


def other_template() -> Chat:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template + " "
    return Chat(tokenizer=tokenizer, stop_token_ids=(2,))


TRANSFORM = "def swap(row):\n    return {'q': row['q'], 'a': row['a'][::-1]}\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda load: load(max_tokens=50),
        lambda load: load(num_held_out=6),
        lambda load: load(system_prompt="Be good."),
        lambda load: load(Letters(mark="!")),
        lambda load: load(chat=other_template()),
        lambda load: load(chat=Chat(tokenizer=CHAT.tokenizer, stop_token_ids=(2, 3))),
        lambda load: load(held_out_source="rows.jsonl"),
        lambda load: load(transform="own_rows:swap"),
    ],
)
def test_whatever_decides_the_examples_makes_them_anew(load, tmp_path: Path, change) -> None:
    (tmp_path / "own_rows.py").write_text(TRANSFORM)
    load()
    change(load)
    assert len(READ) >= 300
    change(load)
    assert len(READ) == 100
    load()
    assert len(READ) == 100  # what was kept first is there still


def test_a_changed_file_is_read_anew(load, tmp_path: Path) -> None:
    load()
    rows = Path("rows.jsonl").read_text()
    seconds = Path("rows.jsonl").stat().st_mtime
    Path("rows.jsonl").write_text(rows.replace("answer 299", "answer 298"))
    os.utime("rows.jsonl", (seconds, seconds))  # neither its size nor its time says so
    split = load()
    assert len(READ) == 300
    assert sum(bytes(example.branches[0].token_ids) == b"answer 298" for example in split.train) == 2


def test_a_changed_transform_reads_anew(load, tmp_path: Path) -> None:
    (tmp_path / "own_rows.py").write_text(TRANSFORM)
    before = load(transform="own_rows:swap")
    (tmp_path / "own_rows.py").write_text(TRANSFORM.replace("row['a'][::-1]", "row['a'].upper()"))
    after = load(transform="own_rows:swap")
    assert len(READ) == 300
    assert bytes(before.train[0].branches[0].token_ids).endswith(b"rewsna")
    assert bytes(after.train[0].branches[0].token_ids).startswith(b"ANSWER")


def test_what_a_transform_looks_up_elsewhere_is_seen_in_the_first_rows(load, tmp_path: Path) -> None:
    head = "from pathlib import Path\nturn = Path(__file__).with_name('turn.txt').read_text()\n"
    (tmp_path / "own_rows.py").write_text(head + TRANSFORM.replace("[::-1]", " + turn"))
    (tmp_path / "turn.txt").write_text("x")
    load(transform="own_rows:swap")
    (tmp_path / "turn.txt").write_text("y")
    split = load(transform="own_rows:swap")
    assert all(bytes(example.branches[0].token_ids).endswith(b"y") for example in (*split.train, *split.held_out))
    assert load.said == [
        "rows.jsonl: the first rows give other examples than before (data.transform?): reading all again"
    ]
    load(transform="own_rows:swap")
    assert len(READ) == 100 and load.said == []


def test_first_rows_that_are_useless_are_no_fault_of_the_file(load) -> None:
    rows = [{"q": f"question {index}", "a": "x" * (95 if index < 120 else 3)} for index in range(300)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for num_read in (300, 100):
        assert load().left_out == {"longer than 100 tokens": 120} and len(READ) == num_read


@pytest.mark.parametrize("damage", ["cut", "emptied", "head", "middle", "places", "end"])
def test_a_damaged_file_is_made_again(load, tmp_path: Path, damage: str) -> None:
    whole = load()
    (path,) = (tmp_path / "kept").iterdir()
    data = bytearray(path.read_bytes())
    del whole
    if damage in ("cut", "emptied"):
        path.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    else:
        at = {"head": 3, "middle": len(data) // 3, "places": len(data) - 1000, "end": len(data) - 1}[damage]
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    load()
    assert len(READ) == 300 and load.said == [f"{path} is damaged: it is made again"]
    assert path.read_bytes() == data


def test_a_faulty_row_is_named_and_nothing_is_kept(load, tmp_path: Path) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write('{"a": "x"}\n')
    for _ in range(2):
        with pytest.raises(DataError, match=r"^rows\.jsonl, line 301: no q$"):
            load()
        assert list((tmp_path / "kept").iterdir()) == []


def test_a_file_that_changes_while_it_is_read(load, tmp_path: Path) -> None:
    (tmp_path / "own_rows.py").write_text(
        "def swap(row):\n    with open('rows.jsonl', 'a') as file:\n        file.write('\\n')\n    return row\n"
    )
    with pytest.raises(DataError, match=r"rows\.jsonl changed while it was read: start again"):
        load(transform="own_rows:swap")
    assert list((tmp_path / "kept").iterdir()) == []


def test_only_what_is_asked_for_is_built(load, monkeypatch) -> None:
    load()
    built: list[int] = []
    read = ExampleFile.example
    monkeypatch.setattr(ExampleFile, "example", lambda file, index: built.append(index) or read(file, index))
    split = load()
    assert built[:5] == [295, 296, 297, 298, 299] and len(built) <= 5 + 100
    built.clear()
    for index in EndlessOrder(range(len(split.train)), seed=0).next(8):
        assert split.train[index].id.startswith("question")
    assert len(built) == 8


def test_memory_does_not_grow_with_the_rows(load) -> None:
    """An answer of 600 tokens is 5 kB as a tuple, and where they stand as much: 5 MB for the larger file."""

    def peak(count: int) -> int:
        rng = random.Random(0)
        with Path("rows.jsonl").open("w") as file:
            for index in range(count):
                file.write(json.dumps({"q": f"question {index}", "a": rng.randbytes(300).hex()}) + "\n")
        tracemalloc.start()
        split = load_examples(
            DataConfig(source="rows.jsonl", num_held_out=5),
            CHAT,
            Letters().example,
            context_length=1000,
            folder=Path("kept"),
            say=print,
        )
        sum(len(example.prompt_ids) for example in split.train)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(100)
    READ.clear()
    assert peak(500) < peak(100) + 1_000_000


def test_how_far_a_reading_is_can_be_heard(load) -> None:
    load()
    lengths = [len(line) for line in Path("rows.jsonl").read_bytes().splitlines(keepends=True)]
    reading = [(done, total) for text, done, total in load.told if text == "reading rows.jsonl"]
    assert reading == [(sum(lengths[: number + 1]), sum(lengths)) for number in range(300)]
    assert load.told[-1] == ("looking through the held-out examples", 5, 5)


def test_the_folder_stays_below_its_limit(load, tmp_path: Path, monkeypatch) -> None:
    load()
    folder = tmp_path / "kept"
    (first,) = folder.iterdir()
    os.utime(first, (1, 1))
    old, fresh = folder / ".a.examples.1-00.tmp", folder / ".b.examples.1-00.tmp"
    old.write_text("killed while it read")
    os.utime(old, (1, 1))
    fresh.write_text("being written")
    monkeypatch.setattr(examples_module, "_MAX_KEPT_BYTES", first.stat().st_size * 1.5)
    load(max_tokens=50)
    left = set(folder.iterdir())
    assert fresh in left and old not in left and first not in left and len(left) == 2


# a process that reads slowly: `python slow.py WAITS_FOR HAS_BEGUN`
SLOW = """
import json, os, signal, sys, time
from pathlib import Path
from burnish.config.schema import DataConfig
from burnish.data.chat import Chat
from burnish.data.examples import load_examples
from burnish.data.preferences import PreferenceReader

class Letters:
    chat_template = None
    eos_token_id = 2
    def __call__(self, text, add_special_tokens):
        return {"input_ids": list(map(ord, text))}
    def decode(self, ids):
        return "".join(map(chr, ids))
    def save_pretrained(self, folder):
        (Path(folder) / "letters").write_text("letters")

def wait(row):
    if row["prompt"] == "50":
        Path(sys.argv[2]).touch()
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 60
        while not Path(sys.argv[1]).exists() and time.monotonic() < until:
            time.sleep(0.01)
    return row

if __name__ == "__main__":
    split = load_examples(
        DataConfig(source="rows.jsonl", num_held_out=5, transform="slow:wait"),
        Chat(tokenizer=Letters(), stop_token_ids=(2,)),
        PreferenceReader(system_prompt=None).pair,
        context_length=100, folder=Path("kept"), say=print,
    )
    print(json.dumps([split.record(), [example.id for example in split.train]]))
"""


def start_slowly(folder: Path, waits_for: str, has_begun: str) -> subprocess.Popen[str]:
    (folder / "slow.py").write_text(SLOW)
    rows = [{"prompt": str(index), "chosen": "yes", "rejected": "no"} for index in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "slow.py", waits_for, has_begun]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_start_at_once(tmp_path: Path) -> None:
    """Each waits in the middle of the file until the other is there too."""
    one, two = start_slowly(tmp_path, "b", "a"), start_slowly(tmp_path, "a", "b")
    said = [process.communicate(timeout=100)[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert said[0] == said[1] and len(json.loads(said[0])[1]) == 75
    (kept,) = (tmp_path / "kept").iterdir()
    assert len(ExampleFile(kept).facts["sides"]) == 2


def test_a_process_killed_while_it_reads_leaves_nothing_that_is_found(tmp_path: Path) -> None:
    killed = start_slowly(tmp_path, "die", "a")
    killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".tmp"]
    after = start_slowly(tmp_path, "a", "b")
    assert len(json.loads(after.communicate(timeout=100)[0])[1]) == 75

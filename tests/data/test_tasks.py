import json
from pathlib import Path

import pytest

from burnish.config.loading import read_recipe
from burnish.config.schema import TaskConfig
from burnish.data.order import EndlessOrder
from burnish.data.tasks import load_tasks
from burnish.errors import ConfigError, DataError
from burnish.records import Message, Prompt, Task
from burnish.rewards.answers import last_number
from burnish.rewards.check import as_completion
from burnish.rewards.code import code_tests
from burnish.rewards.reasoning_gym import score_answer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GSM8K = DATA / "gsm8k" / "train.jsonl"
SVAMP = DATA / "svamp" / "SVAMP.json"


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def row(index: int) -> dict[str, str]:
    return {"prompt": f"question {index}", "answer": str(index)}


def config(source: str, **settings) -> TaskConfig:
    return TaskConfig(source=source, **{"num_held_out": 2, **settings})


def test_quickstart_trains_and_evaluates_on_disjoint_questions() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    split = load_tasks(TaskConfig(**read_recipe("quickstart")["task"]))
    train = {task.messages[-1].content for task in split.train}
    held_out = {task.messages[-1].content for task in split.held_out}
    assert len(held_out) == len(split.held_out) == 100
    assert len(train) == len(split.train) == 100  # of the 200 questions that two one-digit terms allow
    assert not train & held_out


def test_split_is_by_question_and_ignores_repeats_and_order(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)]
    once = load_tasks(config(write(tmp_path / "a.jsonl", *rows)))
    twice = load_tasks(config(write(tmp_path / "b.jsonl", *rows[::-1], *rows)))
    assert {task.id for task in once.held_out} == {task.id for task in twice.held_out}
    assert {task.id for task in once.train} == {task.id for task in twice.train}
    assert (len(once.train), len(once.held_out)) == (18, 2)


def test_held_out_source_is_kept_out_of_training(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *[row(i) for i in range(10)])
    test = write(tmp_path / "test.jsonl", *[row(i) for i in range(8, 12)])
    split = load_tasks(config(train, held_out_source=test, num_held_out=4))
    assert [task.answer for task in split.held_out] == ["8", "9", "10", "11"]
    assert [task.answer for task in split.train] == [str(i) for i in range(8)]


def test_messages_system_prompt_and_extra_fields(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "1+1"},
    ]
    source = write(tmp_path / "a.jsonl", {"messages": turns, "answer": 2, "level": "easy"}, row(1), row(2))
    split = load_tasks(config(source, system_prompt="Be brief."))
    task = next(task for task in (*split.train, *split.held_out) if task.answer == "2" and task.extra)
    assert task.messages[0] == Message(role="system", content="Be brief.")
    assert [message.content for message in task.messages[1:]] == ["hi", "yes?", "1+1"]
    assert task.extra == {"level": "easy"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "a", "answer"', "line 3: not valid JSON"),
        ("[1]", "line 3: a row must be a JSON object, got list"),
        ({"prompt": " ", "answer": "1"}, "line 3: the prompt is empty"),
        ({"prompt": "a"}, "line 3: field 'answer' must be text or a number"),
        ({"prompt": "a", "answer": True}, "line 3: field 'answer' must be text or a number"),
        ({"question": "a", "answer": "1"}, "line 3: needs a text field 'prompt'"),
        ({"prompt": 5, "answer": "1"}, "line 3: needs a text field 'prompt'"),
        ({"messages": [], "answer": "1"}, "line 3: a conversation must be a list of messages"),
        ({"messages": [{"role": "user", "content": ""}], "answer": "1"}, "line 3: every message needs"),
        ({"messages": ["hi"], "answer": "1"}, "line 3: every message needs"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}], "answer": "1"}, "line 3: has both"),
        ('{"prompt": "half \\ud83d", "answer": "1"}', "line 3: holds half a character"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "line 3: not valid JSON"),
        ("[" * 100_000, "line 3: not valid JSON"),
    ],
)
def test_faulty_rows_are_named_by_their_line(tmp_path: Path, bad: object, message: str) -> None:
    source = write(tmp_path / "a.jsonl", row(1), "", bad, row(2))
    with pytest.raises(DataError, match=message):
        load_tasks(config(source))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        load_tasks(config(str(path)))


def test_too_few_questions(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", row(1), row(1), row(2))
    with pytest.raises(DataError, match=r"num_held_out=2 leaves none of the 2 different questions of .*a\.jsonl"):
        load_tasks(config(source))
    with pytest.raises(DataError, match=r"num_held_out=3, but .*a\.jsonl has only 2 different questions"):
        load_tasks(config(source, num_held_out=3))
    with pytest.raises(DataError, match=r"b\.jsonl holds no questions"):
        load_tasks(config(write(tmp_path / "b.jsonl")))


def test_roles_are_checked(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1"}]
    source = write(
        tmp_path / "a.jsonl",
        *({"messages": [*turns[:1], {"role": "user", "content": f"{i}"}], "answer": i} for i in range(4)),
    )
    assert load_tasks(config(source)).train[0].messages[0].role == "system"
    with pytest.raises(DataError, match=r"line 1: brings a system message, and system_prompt is set too"):
        load_tasks(config(source, system_prompt="be long"))
    source = write(tmp_path / "a.jsonl", {"messages": [{"role": "usr", "content": "1+1"}], "answer": 2})
    with pytest.raises(DataError, match="line 1: role 'usr' is not known; give one of system, user, assistant, tool"):
        load_tasks(config(source))


def test_missing_sources() -> None:
    with pytest.raises(ConfigError, match=r"no file nowhere\.jsonl"):
        load_tasks(config("nowhere.jsonl"))
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    with pytest.raises(ConfigError, match="cannot make 'nonsense'"):
        load_tasks(config("reasoning-gym:nonsense"))
    with pytest.raises(ConfigError, match="cannot make 'chain_sum'"):
        load_tasks(config("reasoning-gym:chain_sum", options={"no_such": 1}))


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K files are not beside the checkout")
def test_gsm8k_as_it_is_published() -> None:
    split = load_tasks(config(str(GSM8K), prompt_field="question", num_held_out=200))
    assert len(split.train) + len(split.held_out) == 7473
    assert "####" in split.train[0].answer


def order(position: int = 0, seed: int = 0, count: int = 10) -> EndlessOrder:
    tasks = [Task(id=str(i), messages=(), answer="") for i in range(count)]
    return EndlessOrder([Prompt(task=task, text="", token_ids=(1,)) for task in tasks], seed=seed, position=position)


def test_each_epoch_asks_every_prompt_once_in_a_new_order() -> None:
    prompts = order()
    asked = [prompt.task.id for _ in range(5) for prompt in prompts.next(4)]
    first, second = asked[:10], asked[10:]
    assert sorted(first) == sorted(second) == sorted(map(str, range(10)))
    assert first != second


def test_order_goes_on_from_its_position_and_depends_on_the_seed() -> None:
    whole = [prompt.task.id for prompt in order().next(25)]
    assert [prompt.task.id for prompt in order(position=7).next(18)] == whole[7:]
    assert [prompt.task.id for prompt in order(seed=1).next(25)] != whole


def test_the_split_ignores_the_system_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *[row(i) for i in range(9)])
    plain, brief = load_tasks(config(source)), load_tasks(config(source, system_prompt="Be brief."))
    assert [task.answer for task in plain.held_out] == [task.answer for task in brief.held_out]


def test_one_question_has_one_answer(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", row(1), row(2), row(3), {"prompt": "question 2", "answer": "two"})
    with pytest.raises(DataError, match="'question 2' stands twice, with the answers '2' and 'two'"):
        load_tasks(config(source))


def test_a_transform_makes_the_questions(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_rows.py").write_text(
        "def two(row):\n"
        "    return None if row['n'] == 1 else [{'prompt': f'{row[\"n\"]}{s}?', 'answer': s} for s in 'ab']\n"
        "def one(row):\n    return 'text'\n"
    )
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "rows.jsonl", *[{"n": index} for index in range(4)])
    split = load_tasks(config(source, transform="my_rows:two"))
    asked = {task.messages[0].content for task in (*split.train, *split.held_out)}
    assert asked == {"0a?", "0b?", "2a?", "2b?", "3a?", "3b?"}
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: task\.transform must return a dict"):
        load_tasks(config(source, transform="my_rows:one"))
    with pytest.raises(ConfigError, match=r"task\.transform"):
        load_tasks(config(source, transform="my_rows:three"))
    with pytest.raises(ConfigError, match=r"task\.transform would be ignored"):
        TaskConfig(source="reasoning-gym:chain_sum", transform="my_rows:one")


@pytest.mark.skipif(not SVAMP.is_file(), reason="the public SVAMP data are not beside the checkout")
def test_svamp_is_a_ready_task() -> None:
    split = load_tasks(TaskConfig(source=str(SVAMP), transform="burnish.data.formats:svamp", num_held_out=100))
    assert len(split.train) + len(split.held_out) > 650
    for task in split.train:
        right = as_completion(f"So it is {task.answer}.")
        assert last_number(right, task) == 1.0 and last_number(as_completion("none"), task) == 0.0
    assert {"Subtraction", "Addition"} <= {task.extra["Type"] for task in split.train}


MBPP = {
    "task_id": 11,
    "text": "Write a python function to remove first and last occurrence of a given character from the string.",
    "code": "def remove_Occ(s,ch):\n    i, j = s.index(ch), s.rindex(ch)\n    return s[:i] + s[i+1:j] + s[j+1:]",
    "test_list": ['assert remove_Occ("hello","l") == "heo"', 'assert remove_Occ("PHP","P") == "H"'],
    "test_setup_code": "",
    "challenge_test_list": [],
}


def test_mbpp_is_a_ready_task_that_its_own_code_solves(tmp_path: Path) -> None:
    rows = [{**MBPP, "task_id": index, "text": f"{MBPP['text']} ({index})"} for index in range(3)]
    split = load_tasks(config(write(tmp_path / "mbpp.jsonl", *rows), transform="burnish.data.formats:mbpp"))
    (task,) = split.train
    assert 'pass this test:\n\nassert remove_Occ("hello","l") == "heo"' in task.messages[0].content
    assert "PHP" not in task.messages[0].content
    assert code_tests(as_completion(f"```python\n{task.answer}\n```"), task) == 1.0
    assert code_tests(as_completion("```python\ndef remove_Occ(s, ch): return 'heo'\n```"), task) == 0.5


def test_reasoning_gym_scores_its_own_answers() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    # groups of anagrams may stand in any order; the dataset's own scorer knows it
    split = load_tasks(config("reasoning-gym:group_anagrams", options={"size": 6}, num_held_out=1))
    for task in split.train:
        turned = json.dumps(json.loads(task.answer)[::-1])
        assert score_answer(as_completion(f"I think <answer>{task.answer}</answer>"), task) == 1.0
        assert score_answer(as_completion(f"<answer>{turned}</answer>"), task) == 1.0
        assert score_answer(as_completion("<answer>[]</answer>"), task) < 1.0
    plain = load_tasks(config("reasoning-gym:chain_sum", options={"size": 6}, num_held_out=1)).train[0]
    assert score_answer(as_completion(plain.answer), plain) == 1.0
    with pytest.raises(DataError, match="not from reasoning-gym"):
        score_answer(as_completion("1"), Task(id="t", messages=plain.messages, answer="1"))


def test_an_answer_to_reasoning_gym_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    task = load_tasks(config("reasoning-gym:countdown", options={"size": 6}, num_held_out=1)).train[0]
    with pytest.raises(ConfigError, match=r"countdown scores with .*could run what the model says"):
        score_answer(as_completion(f"<answer>open('{tmp_path}/ran', 'w')</answer>"), task)
    assert not (tmp_path / "ran").exists()


def test_reasoning_gyms_scorer_has_the_options_of_its_questions() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    options = {"min_num_decimal_places": 12, "max_num_decimal_places": 12, "precision": 20}
    split = load_tasks(config("reasoning-gym:decimal_arithmetic", num_held_out=1, options=options | {"size": 12}))
    dataset = gym.create_dataset("decimal_arithmetic", size=1, seed=0, **options)
    for task in split.train:
        near = f"{task.answer[:-2]}{'00' if task.answer[-2:] != '00' else '11'}"
        entry = {"question": "", "answer": task.answer, "metadata": task.extra["metadata"]}
        assert score_answer(as_completion(near), task) == dataset.score_answer(near, entry)


def test_a_question_with_other_fields_is_not_dropped(tmp_path: Path) -> None:
    rows = [{**row(0), "level": 1}, {**row(0), "level": 2}, row(1), row(2), row(3)]
    with pytest.raises(DataError, match="'question 0' stands twice, with another level"):
        load_tasks(config(write(tmp_path / "rows.jsonl", *rows)))


def test_a_question_has_text_alone(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "user", "content": "1+1"},
    ]
    source = write(tmp_path / "a.jsonl", {"messages": turns, "answer": "2"}, row(1), row(2), row(3))
    with pytest.raises(DataError, match=r"line 1: a turn of a question must have text"):
        load_tasks(config(source))

import json
import sys
from pathlib import Path

import pytest

from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Message, Task
from burnish.rewards.instructions import (
    CHECKS,
    count_sentences,
    followed_instructions,
    follows_instructions,
    follows_instructions_loosely,
    words_of,
)
from burnish.rewards.scoring import load_reward

IFEVAL = Path(__file__).parents[2].parent / "shared" / "data" / "ifeval" / "input_data.jsonl"


def completion(text: str) -> Completion:
    return Completion(token_ids=(1,), text=text, sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")


def task(*instructions: tuple[str, dict[str, object]]) -> Task:
    kinds, arguments = [list(column) for column in zip(*instructions, strict=True)]
    extra = {"instruction_id_list": kinds, "kwargs": arguments}
    return Task(id="t", messages=(Message(role="user", content="q"),), answer="", extra=extra)


ENGLISH = "The weather in the north of the country is cold and windy at this time of the year"
AT_LEAST, LESS_THAN = {"relation": "at least"}, {"relation": "less than"}
CASES: dict[str, list[tuple[dict[str, object], str, bool]]] = {
    "change_case:capital_word_frequency": [
        ({"capital_relation": "at least", "capital_frequency": 3}, "NASA, I and U.S.", True),
        ({"capital_relation": "at least", "capital_frequency": 4}, "NASA, I and U.S.", False),
        ({"capital_relation": "less than", "capital_frequency": 2}, "A TOP-TEN list", False),
        ({"capital_relation": "less than", "capital_frequency": 3}, "A TOP-TEN list", True),
    ],
    "change_case:english_capital": [
        ({}, ENGLISH.upper() + "!", True),
        ({}, ENGLISH.upper() + "i", False),
        ({}, "DAS WETTER IST HEUTE SEHR SCHÖN UND DIE SONNE SCHEINT ÜBER DEM GANZEN LAND", False),
    ],
    "change_case:english_lowercase": [
        ({}, ENGLISH.lower(), True),
        ({}, ENGLISH, False),
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": " Say hello. "}, "say Hello. Hello!", True),
        ({"prompt_to_repeat": "Say hello."}, "Sure: Say hello. Hello!", False),
    ],
    "combination:two_responses": [
        ({}, "One.\n******\nTwo.", True),
        ({}, "******\nOne.\n******\nTwo.\n******", True),
        ({}, "One.\n******\n One. ", False),
        ({}, "One.\n******\n\n******\nTwo.", False),
        ({}, "One.\n******Two.******Three.", False),
        ({}, "One.", False),
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "[name] lives in [city [x]]", True),
        ({"num_placeholders": 3}, "[name] lives in [city [x]]", False),
        ({"num_placeholders": 1}, "[na\nme]", False),
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Yours\np. s. Bye", True),
        ({"postscript_marker": "P.S."}, "Yours\nPS: Bye", False),
        ({"postscript_marker": "P.P.S"}, "P.S. a\nP.P.S. b", True),
        ({"postscript_marker": "P.P.S"}, "P.S. a", False),
        ({"postscript_marker": "N.B."}, "n.b. this", True),
        ({"postscript_marker": "N.B."}, "nabs this", False),
    ],
    "detectable_format:constrained_response": [
        ({}, "Well. My answer is maybe. So.", True),
        ({}, "My answer is Yes.", False),
    ],
    "detectable_format:json_format": [
        ({}, '```json\n{"a": [1, null]}\n```', True),
        ({}, "```\n[]```", True),
        ({}, "7", True),
        ({}, "{'a': 1}", False),
        ({}, 'Here: {"a": 1}', False),
        ({}, "[" * 100_000, False),
    ],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", True),
        ({"section_spliter": "SECTION", "num_sections": 3}, "SECTION 1\na\nSECTION 2\nb", False),
        ({"section_spliter": "Section", "num_sections": 1}, "SECTION 1\na", False),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 3}, "List:\n* a\n  - b\n-c\nd - e", True),
        ({"num_bullets": 2}, "List:\n* a\n  - b\n-c\nd - e", False),
        ({"num_bullets": 1}, "**bold**\n* a", True),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and *two words*", True),
        ({"num_highlights": 3}, "*one* and *two words*", False),
        ({"num_highlights": 1}, "**bold**", True),
        ({"num_highlights": 2}, "**bold**", False),
        ({"num_highlights": 1}, "* * ** ** *a\nb*", False),
    ],
    "detectable_format:title": [
        ({}, "<<On Trees>>\nTrees.", True),
        ({}, "<On Trees>\n<< >>", False),
        ({}, "<<On\nTrees>>", False),
    ],
    "keywords:existence": [
        ({"keywords": ["cat", "Tree"]}, "A CATALOGUE of trees", True),
        ({"keywords": ["cat", "Tree"]}, "A cat", False),
        ({"keywords": ["c.t"]}, "cat", False),
    ],
    "keywords:forbidden_words": [
        ({"forbidden_words": ["cat", "dog"]}, "A catalogue of dogs", True),
        ({"forbidden_words": ["cat", "dog"]}, "The Dog.", False),
    ],
    "keywords:frequency": [
        ({"keyword": " cat ", "frequency": 2} | AT_LEAST, "Cat, catalogue", True),
        ({"keyword": "cat", "frequency": 2} | AT_LEAST, "Cat", False),
        ({"keyword": "cat", "frequency": 2} | LESS_THAN, "Cat, catalogue", False),
    ],
    "keywords:letter_frequency": [
        ({"letter": "E", "let_frequency": 3, "let_relation": "at least"}, "Even the", True),
        ({"letter": "e", "let_frequency": 3, "let_relation": "less than"}, "Even the", False),
        ({"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#a #b", True),
    ],
    "language:response_language": [
        ({"language": "de"}, "Das Wetter ist heute sehr schön und die Sonne scheint.", True),
        ({"language": "fr"}, "Das Wetter ist heute sehr schön und die Sonne scheint.", False),
        ({"language": "hi"}, "आज मौसम बहुत अच्छा है और धूप निकली है।", True),
        ({"language": "fr"}, "123 !", True),
    ],
    "length_constraints:nth_paragraph_first_word": [
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, "A.\n\n'Then, b.", True),
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, "A.\n\nThe b.", False),
        ({"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"}, "A.\n\nb\n\nc", False),
        ({"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}, "A.", False),
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"}, "a\n\n\n\nb", False),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "a\n***\nb", True),
        ({"num_paragraphs": 2}, "***\na\n***\nb\n***", True),
        ({"num_paragraphs": 2}, "a\n\nb", False),
        ({"num_paragraphs": 2}, "a\n***\n\n***\nb", False),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2} | AT_LEAST, "One. Two!", True),
        ({"num_sentences": 3} | AT_LEAST, "One. Two!", False),
        ({"num_sentences": 2} | LESS_THAN, "One. Two!", False),
    ],
    "length_constraints:number_words": [
        ({"num_words": 4} | AT_LEAST, "It's four-letter", True),
        ({"num_words": 5} | AT_LEAST, "It's four-letter", False),
        ({"num_words": 4} | LESS_THAN, "It's four-letter", False),
    ],
    "punctuation:no_comma": [
        ({}, "One; two.", True),
        ({}, "One, two.", False),
    ],
    "startend:end_checker": [
        ({"end_phrase": "The End. "}, 'So. "the end."\n', True),
        ({"end_phrase": "The End."}, "The End. Bye.", False),
    ],
    "startend:quotation": [
        ({}, ' "Quoted"\n', True),
        ({}, '"Quoted" said he', False),
        ({}, '"', False),
    ],
}


@pytest.mark.parametrize(
    ("kind", "arguments", "text", "followed"), [(kind, *case) for kind, cases in CASES.items() for case in cases]
)
def test_instruction(kind: str, arguments: dict[str, object], text: str, followed: bool) -> None:
    if kind.startswith("language") or "english" in kind:
        pytest.importorskip("langdetect", reason="langdetect is in the extra `instructions`")
    assert followed_instructions(text, task((kind, arguments))) == [followed]


def test_every_kind_has_cases_of_both_sorts() -> None:
    assert len(CHECKS) == 25
    assert set(CASES) == set(CHECKS)
    for cases in CASES.values():
        assert {followed for _, _, followed in cases} == {True, False}


@pytest.mark.parametrize("kind", CHECKS)
def test_an_empty_completion_follows_nothing(kind: str) -> None:
    assert followed_instructions(" \n", task((kind, CASES[kind][0][0]))) == [False]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("no mark", 1),
        ("One. Two? Three! Four", 4),
        ("Dr. Smith met Mr. J. R. Jones in the U.S. Army.", 1),
        ("It costs 3.50 dollars. Really?!", 2),
        ('He said "Go." Then he went.', 2),
        ("It was late... and cold. And e.g. this.", 2),
        ("A heading\n* a point\n* a point", 1),
        ("Wait! what? yes.", 3),
        ("A list, etc. Then more.", 2),
        ("." * 1000, 1),
    ],
)
def test_count_sentences(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_words() -> None:
    assert words_of('(U.S.) top-ten, "I\'m" A1; x') == ["U.S", "top-ten", "I", "m", "A1", "x"]


NO_COMMA, TITLE = ("punctuation:no_comma", {}), ("detectable_format:title", {})


def test_share_of_instructions() -> None:
    three = task(NO_COMMA, TITLE, ("startend:quotation", {}))
    assert follows_instructions(completion("no comma"), three) == pytest.approx(1 / 3)
    assert follows_instructions(completion('"<<all>>"'), three) == 1.0
    assert follows_instructions(completion(""), three) == 0.0


def test_loose_versions_drop_lines_and_asterisks() -> None:
    quoted = task(("startend:quotation", {}))
    for text in ('Sure!\n"Yes"', '"Yes"\nHope it helps.', 'Sure!\n"Yes"\nBye.', '**"Yes"**', 'Sure!\n*"Yes"*\nBye.'):
        assert follows_instructions(completion(text), quoted) == 0.0
        assert follows_instructions_loosely(completion(text), quoted) == 1.0
    assert follows_instructions_loosely(completion("No"), quoted) == 0.0
    # Each instruction may be followed by a version of its own.
    two = task(("startend:quotation", {}), ("keywords:existence", {"keywords": ["sure"]}))
    assert follows_instructions_loosely(completion('Sure!\n"Yes"'), two) == 1.0


@pytest.mark.parametrize("name", ["follows_instructions", "follows_instructions_loosely"])
def test_as_a_reward_of_a_recipe(name: str) -> None:
    assert load_reward(f"burnish.rewards.instructions:{name}")(completion("x"), task(NO_COMMA)) == 1.0


def test_null_arguments_count_as_absent() -> None:
    row = task(("punctuation:no_comma", {"num_words": None, "relation": None}), ("startend:quotation", None))
    assert followed_instructions('"x"', row) == [True, True]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "needs 'instruction_id_list' and 'kwargs'"),
        ({"instruction_id_list": [], "kwargs": []}, "at least 1"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "same length"),
        ({"instruction_id_list": ["punctuation:no_dot"], "kwargs": [{}]}, "'punctuation:no_dot' is not known"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]}, "startend:end_checker.*end_phrase"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": 1}]}, "'x'"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 1, "relation": "at most"}],
            },
            "'at most'",
        ),
    ],
)
def test_rows_that_cannot_be_checked(extra: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        followed_instructions("text", Task(id="t", messages=(), answer="", extra=extra))


def test_without_langdetect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    assert followed_instructions("text", task(NO_COMMA)) == [True]
    with pytest.raises(ConfigError, match=r"burnish\[instructions\]"):
        followed_instructions("text", task(("language:response_language", {"language": "en"})))


def test_a_language_is_the_same_each_time() -> None:
    pytest.importorskip("langdetect", reason="langdetect is in the extra `instructions`")
    short = task(*[("language:response_language", {"language": code}) for code in ("af", "da", "et", "cs", "no")])
    assert len({tuple(followed_instructions("system status", short)) for _ in range(20)}) == 1


@pytest.mark.skipif(not IFEVAL.is_file(), reason="the IFEval file is not beside the checkout")
def test_every_row_of_the_published_file() -> None:
    pytest.importorskip("langdetect", reason="langdetect is in the extra `instructions`")
    rows = [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 541
    for row in rows:
        followed = followed_instructions(row["prompt"], Task(id=str(row["key"]), messages=(), answer="", extra=row))
        assert len(followed) == len(row["instruction_id_list"])
    assert {kind for row in rows for kind in row["instruction_id_list"]} == set(CHECKS)

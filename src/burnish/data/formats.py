"""Rows of well-known public datasets to rows that burnish reads.

Name one as data.transform, and those that make questions, `svamp` and `mbpp`, as task.transform. GSM8K's questions need
none: --task.prompt_field question.
"""

from collections.abc import Mapping
from typing import Any

from burnish.data.rows import Row

_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool"}


def gsm8k(row: Mapping[str, Any]) -> Row:
    """GSM8K (Cobbe et al. 2021): a question and its worked answer, to imitate."""
    return {"prompt": row["question"], "completion": row["answer"]}


def svamp(row: Mapping[str, Any]) -> Row:
    """SVAMP (Patel et al. 2021): a word problem whose answer is a number; its Type can be a baseline's scope."""
    body = str(row["Body"]).strip()
    body = body if body.endswith((".", "!", "?")) else f"{body}."
    return {"prompt": f"{body} {str(row['Question']).strip()}", "answer": row["Answer"], "Type": row["Type"]}


def mbpp(row: Mapping[str, Any]) -> Row:
    """MBPP (Austin et al. 2021): what a function must do, and its tests, for burnish.rewards.code:code_tests.

    The first test stands in the question, as in the paper: it says the function's name. The others are kept from it.
    """
    text = row["text"] if "text" in row else row["prompt"]  # the sanitized edition calls it prompt
    tests = list(row["test_list"])
    setup = row["test_setup_code"] if "test_setup_code" in row else "\n".join(row["test_imports"])
    return {
        "prompt": f"{text}\nYour code must pass this test:\n\n{tests[0]}",
        "answer": row["code"],
        "tests": tests,
        "test_setup_code": setup,
    }


def alpaca(row: Mapping[str, Any]) -> Row:
    """An instruction with an optional input and its output (Taori et al. 2023), to imitate."""
    return {"prompt": _instruction(row), "completion": row["output"]}


def sharegpt(row: Mapping[str, Any]) -> Row:
    """`conversations` of {"from", "value"}; with `chosen` and `rejected` in that form, a preference."""
    messages = [_message(turn) for turn in row["conversations"]]
    if "chosen" not in row:
        return {"messages": messages}
    return {"prompt": messages, "chosen": [_message(row["chosen"])], "rejected": [_message(row["rejected"])]}


def pandalm(row: Mapping[str, Any]) -> Row | None:
    """PandaLM's human labels (Wang et al. 2023): two answers, the better one by majority of three people.

    Rows where the majority is a tie, or there is none, or an answer is empty, are left out.
    """
    votes = [row[f"annotator{index}"] for index in (1, 2, 3)]
    better = next((choice for choice in (1, 2) if votes.count(choice) >= 2), None)
    answers = {1: row["response1"], 2: row["response2"]}
    if better is None or not all(isinstance(each, str) and each.strip() for each in answers.values()):
        return None
    return {"prompt": _instruction(row), "chosen": answers[better], "rejected": answers[3 - better]}


def qa_feedback(row: Mapping[str, Any]) -> list[Row]:
    """QA-Feedback (Wu et al. 2023): the question after its passages, and every pair of answers people did not tie."""
    passages = "\n\n".join("\n".join(passage[1:]) for passage in row["passages"])
    return _answer_pairs(row, f"{passages}\n\nQuestion: {row['question']}")


def qa_feedback_questions(row: Mapping[str, Any]) -> list[Row]:
    """The same without the passages: a quarter of the tokens, and what the passages would tell is left to guess."""
    return _answer_pairs(row, str(row["question"]))


def _answer_pairs(row: Mapping[str, Any], prompt: str) -> list[Row]:
    pairs = [(first, second) for first in range(1, 5) for second in range(first + 1, 5)]
    rows = []
    for (first, second), preference in zip(pairs, row["preference"], strict=True):
        if preference in (1, 2):
            chosen, rejected = (first, second) if preference == 1 else (second, first)
            answers = {"chosen": row[f"prediction {chosen}"], "rejected": row[f"prediction {rejected}"]}
            rows.append({"prompt": prompt, **answers})
    return rows


def _instruction(row: Mapping[str, Any]) -> str:
    given = row.get("input")
    return f"{row['instruction']}\n\n{given}" if given else str(row["instruction"])


def _message(turn: Mapping[str, Any]) -> Row:
    return {"role": _SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}

"""Feedback as rows to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from burnish.data.rows import Row
from burnish.serving.database import Database

_SELECT = """SELECT request_id, number, asked, model, messages, text, ending, version, rating, is_preferred,
    correction FROM answers JOIN requests ON id = request_id LEFT JOIN feedback USING (request_id, number)
    WHERE ending IN ('stop', 'length') AND asked >= ? AND messages IS NOT NULL ORDER BY asked, request_id, number"""


def feedback_pairs(database: Database, *, model: str | None = None, since: float = 0.0) -> Iterator[Row]:
    """`prompt`, `chosen`, `rejected` as `burnish train dpo` takes them, each pair once.

    A correction is better than what it corrects; the preferred answer is better than the others of its request; and of
    the answers to one prompt each that was called good is better than each that was called bad. What ran into its limit
    is never chosen, and of an answer without words nothing is learnt.
    """
    seen = set[tuple[str, str, str]]()
    for prompt, answers in _by_prompt(database, model, since):
        for chosen, rejected, version in _pairs(answers):
            key = (json.dumps(prompt), chosen, rejected)
            if chosen != rejected and chosen.strip() and rejected.strip() and key not in seen:
                seen.add(key)
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "rejected_version": version}


def feedback_examples(database: Database, *, model: str | None = None, since: float = 0.0) -> Iterator[Row]:
    """`prompt` and `completion` as `burnish train sft` takes them: corrections, and what was called good or best."""
    seen = set[tuple[str, str]]()
    for prompt, answers in _by_prompt(database, model, since):
        for row in answers:
            is_liked = row["ending"] == "stop" and (row["rating"] == "good" or row["is_preferred"])
            text = row["correction"] or (row["text"] if is_liked else None)
            if text and text.strip() and (key := (json.dumps(prompt), text)) not in seen:
                seen.add(key)
                yield {"prompt": prompt, "completion": text}


def _by_prompt(
    database: Database, model: str | None, since: float
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """(messages, their answers, one for each person who said something of it), of conversations that training takes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in database.run(_SELECT, since):
        if model in (None, row["model"]):
            found.setdefault(row["messages"], []).append(row)
    for prompt, answers in found.items():
        messages = [_for_training(message) for message in json.loads(prompt)]
        if all(message["content"].strip() for message in messages):
            yield messages, answers


def _for_training(message: dict[str, str]) -> dict[str, str]:
    """What OpenAI calls a developer since a while is a system prompt to those who train."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _pairs(answers: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    for row in answers:
        if row["correction"]:
            yield row["correction"], row["text"], row["version"]
        if row["is_preferred"] and row["ending"] == "stop":
            for other in answers:
                if other["request_id"] == row["request_id"] and other["number"] != row["number"]:
                    yield row["text"], other["text"], other["version"]
    good = [row for row in answers if row["rating"] == "good" and row["ending"] == "stop"]
    bad = [row for row in answers if row["rating"] == "bad"]
    for better in good:
        for worse in bad:
            if better["text"] != worse["text"]:
                yield better["text"], worse["text"], worse["version"]

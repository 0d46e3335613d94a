"""Rows that say which answer is better, or good, to examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from burnish.data.chat import Chat
from burnish.data.examples import SkippedRow, answer_messages, prompt_id, prompt_messages
from burnish.data.rows import Row
from burnish.errors import DataError
from burnish.records import Branch, Example


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceReader:
    """Reads `prompt` with `chosen` and `rejected`, or `prompt` with graded `responses`, [{"content", "score"}].

    A pair may bring `chosen_score` and `rejected_score`, and any row a `weight`; with `needs_grades` a pair must.
    """

    system_prompt: str | None
    needs_grades: bool = False

    def pair(self, chat: Chat, row: Row, place: str) -> Example:
        """The chosen branch, then the rejected one; of graded responses the best and the worst."""
        example = self.graded(chat, row, place)
        best, *_, worst = sorted(example.branches, key=lambda branch: -branch.score)
        return replace(example, branches=(replace(best, label=1.0), replace(worst, label=-1.0)))

    def graded(self, chat: Chat, row: Row, place: str) -> Example:
        """A branch with its grade for every answer; without grades a chosen one has 1 and a rejected one 0.

        Raises:
            SkippedRow: all grades, or all answers, are the same.
        """
        messages = prompt_messages(row, self.system_prompt, place)
        weight = _number(row.get("weight", 1.0), "weight", place)
        if weight < 0:
            raise DataError(f"{place}: 'weight' must not be negative, got {weight}")
        prompt_ids: list[int] = []
        branches: list[Branch] = []
        for name, value, score in self._answers(row, place):
            answer = answer_messages(value, name, place)
            prompt_ids, branch = chat.conversation([*messages, *answer], only_last=True)
            branches.append(replace(branch, score=score, weight=weight))
        if len({branch.token_ids for branch in branches}) == 1:
            raise SkippedRow("the answers are the same")
        if len({branch.score for branch in branches}) == 1:
            raise SkippedRow("the answers have the same grade")
        return Example(id=prompt_id(messages), prompt_ids=tuple(prompt_ids), branches=tuple(branches))

    def labelled(self, chat: Chat, row: Row, place: str) -> Example:
        """A branch with label +1 or -1 for every answer: of a pair, or of `completion` with a true or false `label`."""
        if "completion" not in row:
            return self.pair(chat, row, place)
        if not isinstance(row.get("label"), bool):
            raise DataError(f"{place}: 'label' must be true or false, got {row.get('label')!r}")
        messages = prompt_messages(row, self.system_prompt, place)
        answer = answer_messages(row["completion"], "completion", place)
        prompt_ids, branch = chat.conversation([*messages, *answer], only_last=True)
        branch = replace(branch, label=1.0 if row["label"] else -1.0)
        return Example(id=prompt_id(messages), prompt_ids=tuple(prompt_ids), branches=(branch,))

    def _answers(self, row: Row, place: str) -> list[tuple[str, Any, float]]:
        if "responses" in row:
            responses = row["responses"]
            if not isinstance(responses, list) or len(responses) < 2:
                raise DataError(f"{place}: 'responses' must be a list of at least two answers")
            if not all(isinstance(each, dict) for each in responses):
                raise DataError(f"{place}: every response needs a 'content' and a 'score'")
            return [("content", each.get("content"), _number(each.get("score"), "score", place)) for each in responses]
        if "chosen" not in row or "rejected" not in row:
            raise DataError(f"{place}: needs 'chosen' and 'rejected', or graded 'responses'; data.transform makes them")
        has_grades = "chosen_score" in row and "rejected_score" in row
        if self.needs_grades and not has_grades:
            raise DataError(f"{place}: needs 'chosen_score' and 'rejected_score': the loss uses a margin of grades")
        scores = (1.0, 0.0)
        if has_grades:
            chosen, rejected = (
                _number(row[f"{side}_score"], f"{side}_score", place) for side in ("chosen", "rejected")
            )
            if chosen < rejected:
                raise DataError(
                    f"{place}: the chosen answer has a lower score ({chosen}) than the rejected ({rejected})"
                )
            scores = (chosen, rejected)
        return [("chosen", row["chosen"], scores[0]), ("rejected", row["rejected"], scores[1])]


def _number(value: Any, field: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{place}: {field!r} must be a finite number, got {value!r}")
    return float(value)

"""From the settings of a task to the items of an evaluation: what is asked, and what the answer is compared with."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from burnish.config.evaluation import EvalTaskConfig
from burnish.config.imports import import_by_path
from burnish.data.chat import Chat, render_prompt
from burnish.data.examples import SkippedRow, prompt_id
from burnish.data.preferences import PreferenceReader
from burnish.data.rows import source_rows, transformed
from burnish.data.tasks import load_tasks, read_tasks
from burnish.errors import DataError
from burnish.evaluation.perturb import perturbed
from burnish.models.load import ModelFacts
from burnish.records import Branch, Message, Prompt, Task
from burnish.reproducibility.record import extra_sha256

GENERATED = "reasoning-gym:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """A question. `branches` are the continuations that are compared, with their texts in `choices`; none where the
    model answers itself. `right` numbers the right one. `original` is the task before it was perturbed.
    """

    id: str
    prompt: Prompt
    original: Task
    cluster: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    choices: tuple[str, ...] = ()
    right: int = 0

    def line(self) -> dict[str, Any]:
        """The item as it is stored."""
        task = self.prompt.task
        compared = {"choices": list(self.choices), "right": self.right} if self.choices else {}
        return {
            "id": self.id,
            "cluster": self.cluster,
            "slices": dict(self.slices),
            "messages": _messages(task),
            "prompt": self.prompt.text,
            "answer": task.answer,
            **compared,
            "extra": dict(task.extra),
        }

    def asked(self) -> dict[str, Any]:
        """What the fingerprints of the items are made of: the question before any perturbation, and what is right."""
        question = {"id": self.id, "messages": _messages(self.original)}
        if self.choices:
            return {**question, "answer": [list(self.choices), self.right]}
        return {**question, "answer": self.original.answer, "extra_sha256": extra_sha256(self.original)}


def _messages(task: Task) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in task.messages]


def eval_tasks(config: EvalTaskConfig) -> list[Task]:
    """The tasks in their order, each question once.

    Raises:
        DataError: there are none, or a question or an id stands there twice.
        ConfigError: the source does not exist.
    """
    if config.split == "held_out":
        tasks = list(load_tasks(config).held_out)
    else:
        tasks = read_tasks(config)
        if config.source.startswith(GENERATED):  # which draws the same question again and again
            tasks = list({task.id: task for task in tasks}.values())
    tasks = [_named(task, config.id_field) for task in tasks[: config.num_items]]
    seen: dict[str, Task] = {}
    for task in tasks:
        if task.id in seen:
            what = f"id {task.id!r}" if config.id_field else f"question {task.messages[-1].content[:60]!r}"
            raise DataError(
                f"task.source: {config.source}: the {what} stands there twice: an item would count double"
                + ("" if config.id_field else "; keep one, or name the items with task.id_field")
            )
        seen[task.id] = task
    return tasks


def _named(task: Task, id_field: str | None) -> Task:
    if id_field is None:
        return task
    name = _look_up(task.extra, id_field, "task.id_field", task.id)
    return Task(id=name, messages=task.messages, answer=task.answer, extra=task.extra)


def asked_items(
    config: EvalTaskConfig, tasks: Iterable[Task], render: Callable[[Task], Prompt], *, seed: int
) -> list[EvalItem]:
    """Items that the model answers itself."""
    items = []
    for task in tasks:
        asked = task if config.perturb is None else perturbed(task, config.perturb, seed=seed)
        items.append(EvalItem(id=task.id, prompt=render(asked), original=task, **_groups(config, task.extra, task.id)))
    return items


def choice_items(config: EvalTaskConfig, tasks: Iterable[Task], model: ModelFacts) -> list[EvalItem]:
    """Items with choices, each as the continuation of the rendered prompt, without an end of turn.

    Raises:
        DataError: a row has no choices, or its answer is none of them.
    """
    chat = Chat(tokenizer=model.tokenizer, stop_token_ids=model.stop_token_ids)
    render = partial(render_prompt, chat, context_length=model.context_length, max_tokens=1)
    items = []
    for task in tasks:
        choices = _choices(task)
        prompt = render(task)
        ids = [tuple(chat.following_ids(prompt.text, prompt.token_ids, choice)) for choice in choices]
        _require_room(task.id, len(prompt.token_ids) + max(map(len, ids)), model.context_length)
        items.append(
            EvalItem(
                id=task.id,
                prompt=prompt,
                original=task,
                branches=tuple(Branch(token_ids=each) for each in ids),
                choices=tuple(choices),
                right=_right_choice(task, choices),
                **_groups(config, task.extra, task.id),
            )
        )
    return items


def pair_items(config: EvalTaskConfig, model: ModelFacts) -> list[EvalItem]:
    """Preference pairs, the chosen answer first. Pairs of one prompt are a cluster, unless a field names another.

    Raises:
        DataError: a row is no pair, a pair stands there twice, or there are none.
    """
    chat = Chat(tokenizer=model.tokenizer, stop_token_ids=model.stop_token_ids)
    reader = PreferenceReader(system_prompt=config.system_prompt)
    transform = None
    if config.transform is not None:
        transform = import_by_path(config.transform, "task.transform", arguments=("row",))
    items: dict[str, EvalItem] = {}
    for place, raw in source_rows("task.source", config.source):
        for row in transformed(transform, raw, place, "task.transform"):
            if config.num_items is not None and len(items) == config.num_items:
                return list(items.values())
            item = _pair_item(config, chat, reader, row, place)
            longest = max(len(branch.token_ids) for branch in item.branches)
            _require_room(item.id, len(item.prompt.token_ids) + longest, model.context_length)
            if item.id in items:
                raise DataError(f"{place}: the pair {item.id!r} stands there twice: it would count double")
            items[item.id] = item
    if not items:
        raise DataError(f"task.source: {config.source} holds no pairs")
    return list(items.values())


def _pair_item(
    config: EvalTaskConfig, chat: Chat, reader: PreferenceReader, row: dict[str, Any], place: str
) -> EvalItem:
    try:
        example = reader.pair(chat, row, place)
    except SkippedRow as skipped:
        raise DataError(f"{place}: {skipped}: neither is better; leave the row out, say with task.transform") from None
    texts = tuple(
        str(chat.tokenizer.decode(list(each.token_ids), skip_special_tokens=True)) for each in example.branches
    )
    question = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    digest = hashlib.sha256(json.dumps([example.id, *texts]).encode()).hexdigest()[:16]
    name = digest if config.id_field is None else _look_up(row, config.id_field, "task.id_field", place)
    messages = tuple(Message(role=each["role"], content=str(each["content"])) for each in question)
    task = Task(id=name, messages=messages, answer=texts[0])
    groups = _groups(config, row, name)
    return EvalItem(
        id=name,
        prompt=Prompt(
            task=task, text=str(chat.tokenizer.decode(list(example.prompt_ids))), token_ids=example.prompt_ids
        ),
        original=task,
        branches=example.branches,
        choices=texts,
        **{**groups, "cluster": groups["cluster"] or prompt_id(question)},
    )


def _choices(task: Task) -> list[str]:
    choices = task.extra.get("choices")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(each, str) and each.strip() for each in choices)
        or len(set(choices)) < len(choices)
    ):
        raise DataError(f"task {task.id}: task.kind=choices needs 'choices', a list of different texts in each row")
    return choices


def _right_choice(task: Task, choices: Sequence[str]) -> int:
    """The number of the right choice: `answer` is its text, or its letter, or its number from 0."""
    answer = task.answer.strip()
    if task.answer in choices:
        return choices.index(task.answer)
    if answer.isdecimal() and int(answer) < len(choices):
        return int(answer)
    letter = answer.strip("().")
    if len(letter) == 1 and letter in string.ascii_uppercase[: len(choices)]:
        return string.ascii_uppercase.index(letter)
    raise DataError(
        f"task {task.id}: answer {task.answer!r} is none of its {len(choices)} choices: give its text, its letter (A "
        "is the first), or its number (0 is the first)"
    )


def _groups(config: EvalTaskConfig, fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    cluster = config.cluster_field
    return {
        "cluster": None if cluster is None else _look_up(fields, cluster, "task.cluster_field", place),
        "slices": {name: _look_up(fields, name, "task.slice_fields", place) for name in config.slice_fields},
    }


def _look_up(fields: Mapping[str, Any], path: str, key: str, place: str) -> str:
    """The value of a field as text; a dot goes into a mapping."""
    found: Any = fields
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = ", ".join(sorted(map(str, fields))) or "none"
            raise DataError(f"{key}={path}: item {place} has no such field; it has: {known}")
        found = found[part]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _require_room(name: str, num_tokens: int, context_length: int) -> None:
    if num_tokens > context_length:
        raise DataError(f"item {name}: {num_tokens} tokens exceed the model's context of {context_length}")

"""Where tasks come from, the split by question, and the order in which they are asked."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from burnish.config.extras import requires_extra
from burnish.config.imports import import_by_path
from burnish.config.schema import TaskConfig
from burnish.data.rows import Row, read_messages, source_rows, transformed, with_system_prompt
from burnish.errors import ConfigError, DataError
from burnish.records import Message, Task
from burnish.reproducibility.seeds import seed_for

_REASONING_GYM = "reasoning-gym:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSplit:
    """Tasks to train on and tasks held out. No question stands in both."""

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]


def load_tasks(config: TaskConfig) -> TaskSplit:
    """Read, remove repeated questions, and split by question.

    The split depends on the questions alone, not on the run's seed or system prompt: such runs, and a question that
    stands in the source several times, meet the same held-out set.

    Raises:
        DataError: the source cannot be read, a row is faulty (named by its line), or too few questions remain.
        ConfigError: the source does not exist.
    """
    unique = _unique(_read(config, "source", config.source))
    if config.held_out_source is not None:
        held_out = _unique(_read(config, "held_out_source", config.held_out_source))[: config.num_held_out]
        held_out_ids = {task.id for task in held_out}
        train = [task for task in unique if task.id not in held_out_ids]
    else:
        shuffled = sorted(unique, key=lambda task: seed_for(0, "held-out split", task.id))
        held_out, train = shuffled[: config.num_held_out], shuffled[config.num_held_out :]
    if not unique:
        raise DataError(f"task.source: {config.source} holds no questions")
    if len(held_out) < config.num_held_out:
        raise DataError(
            f"task.num_held_out={config.num_held_out}, but {config.held_out_source or config.source} has only "
            f"{len(held_out)} different questions"
        )
    if not train:
        raise DataError(
            f"task.num_held_out={config.num_held_out} leaves none of the {len(unique)} different questions of "
            f"{config.source} to train on"
        )
    return TaskSplit(train=tuple(train), held_out=tuple(held_out))


def read_tasks(config: TaskConfig) -> list[Task]:
    """Every task of `config.source` in its order, those that stand there twice too.

    Raises:
        DataError, ConfigError: as `load_tasks`.
    """
    found = _read(config, "source", config.source)
    if not found:
        raise DataError(f"task.source: {config.source} holds no questions")
    return found


def _unique(tasks: Iterable[Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in tasks:
        first = found.setdefault(task.id, task)
        if first.answer != task.answer:
            raise DataError(
                f"the question {task.messages[-1].content[:60]!r} stands twice, with the answers {first.answer[:40]!r} "
                f"and {task.answer[:40]!r}: keep one"
            )
        fields = {key for key in {*first.extra, *task.extra} if first.extra.get(key) != task.extra.get(key)}
        if fields - {"metadata"}:  # reasoning-gym's says where in its order an item stands
            raise DataError(
                f"the question {task.messages[-1].content[:60]!r} stands twice, with another {sorted(fields)[0]}: keep "
                "one, make the questions differ, or leave the field out by task.transform"
            )
    return list(found.values())


def _read(config: TaskConfig, key: str, source: str) -> list[Task]:
    if source.startswith(_REASONING_GYM):
        return _read_reasoning_gym(config, source.removeprefix(_REASONING_GYM))
    transform = None
    if config.transform is not None:
        transform = import_by_path(config.transform, "task.transform", arguments=("row",))
    return [
        _parse_row(config, row, place)
        for place, raw in source_rows(f"task.{key}", source)
        for row in transformed(transform, raw, place, "task.transform")
    ]


def _read_reasoning_gym(config: TaskConfig, dataset: str) -> list[Task]:
    with requires_extra("demo", f"task.source=reasoning-gym:{dataset} needs reasoning-gym"):
        import reasoning_gym
    options = {"size": 2000, **config.options}
    size = options.pop("size")
    try:
        items = reasoning_gym.create_dataset(dataset, seed=0, size=size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"task.source: reasoning-gym cannot make {dataset!r} with {dict(config.options)}: {error}"
        ) from error
    tasks = []
    for item in items:
        question = (Message(role="user", content=item["question"]),)
        extra = {"metadata": _hashable(item["metadata"]), "reasoning_gym_options": options}
        tasks.append(_task(config, question, str(item["answer"]), extra))
    return tasks


def _hashable(metadata: Any) -> Any:
    """What the dataset's own scoring needs, as it is where it is plain data: a run's fingerprint holds every field."""
    try:
        json.dumps(metadata, sort_keys=True)
    except TypeError:
        return json.loads(json.dumps(metadata, default=str))
    return metadata


def _parse_row(config: TaskConfig, row: Row, place: str) -> Task:
    answer = row.get(config.answer_field)
    if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise DataError(f"{place}: field {config.answer_field!r} must be text or a number (task.answer_field names it)")
    extra = {
        key: value for key, value in row.items() if key not in (config.prompt_field, "messages", config.answer_field)
    }
    return _task(config, _messages(config, row, place), str(answer), extra)


def _messages(config: TaskConfig, row: Row, place: str) -> tuple[Message, ...]:
    prompt, turns = row.get(config.prompt_field), row.get("messages")
    if prompt is not None and turns is not None:
        raise DataError(f"{place}: has both {config.prompt_field!r} and 'messages': keep one")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{place}: the prompt is empty")
        return (Message(role="user", content=prompt),)
    if prompt is not None or turns is None:
        raise DataError(
            f"{place}: needs a text field {config.prompt_field!r} (task.prompt_field names it) or 'messages'"
        )
    messages = read_messages(turns, place)
    if any(message.get("tool_calls") or message.get("content") is None for message in messages):
        raise DataError(f"{place}: a turn of a question must have text, and no tool_calls")
    with_system_prompt(messages, config.system_prompt, place)  # refuses a second system message
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)


def _task(config: TaskConfig, messages: tuple[Message, ...], answer: str, extra: Mapping[str, Any]) -> Task:
    canonical = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    if config.system_prompt is not None:
        messages = (Message(role="system", content=config.system_prompt), *messages)
    return Task(id=hashlib.sha256(canonical.encode()).hexdigest()[:16], messages=messages, answer=answer, extra=extra)

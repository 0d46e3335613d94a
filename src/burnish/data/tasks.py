"""Where tasks come from, the split by question, and the order in which they are asked."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.config.schema import TaskConfig
from burnish.errors import ConfigError, DataError
from burnish.records import Message, Task
from burnish.reproducibility.seeds import seed_for

_REASONING_GYM = "reasoning-gym:"
_ROLES = ("system", "user", "assistant", "tool")


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


def _unique(tasks: Iterable[Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in tasks:
        first = found.setdefault(task.id, task)
        if first.answer != task.answer:
            raise DataError(
                f"the question {task.messages[-1].content[:60]!r} stands twice, with the answers {first.answer[:40]!r} "
                f"and {task.answer[:40]!r}: keep one"
            )
    return list(found.values())


def _read(config: TaskConfig, key: str, source: str) -> list[Task]:
    if source.startswith(_REASONING_GYM):
        return _read_reasoning_gym(config, source.removeprefix(_REASONING_GYM))
    if not Path(source).is_file():
        raise ConfigError(f"task.{key}: no file {source}; give a JSONL file or reasoning-gym:<dataset>")
    return _read_jsonl(config, Path(source))


def _read_reasoning_gym(config: TaskConfig, dataset: str) -> list[Task]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            f"task.source: reasoning-gym is not installed ({error}): pip install 'burnish[demo]'"
        ) from error
    try:
        items = reasoning_gym.create_dataset(dataset, seed=0, size=config.num_generated, **config.options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"task.source: reasoning-gym cannot make {dataset!r} with {dict(config.options)}: {error}"
        ) from error
    return [_task(config, (Message(role="user", content=item["question"]),), item["answer"], {}) for item in items]


def _read_jsonl(config: TaskConfig, path: Path) -> list[Task]:
    tasks = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8: {error.reason}") from error
            if text.strip():
                tasks.append(_parse_row(config, text, place))
    return tasks


def _parse_row(config: TaskConfig, line: str, place: str) -> Task:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: holds half a character (a lone surrogate), which no tokenizer can read") from error
    except (ValueError, RecursionError) as error:  # a syntax error, a number of thousands of digits, endless nesting
        raise DataError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be a JSON object, got {type(row).__name__}")
    answer = row.get(config.answer_field)
    if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise DataError(f"{place}: field {config.answer_field!r} must be text or a number (task.answer_field names it)")
    extra = {
        key: value for key, value in row.items() if key not in (config.prompt_field, "messages", config.answer_field)
    }
    return _task(config, _messages(config, row, place), str(answer), extra)


def _messages(config: TaskConfig, row: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    prompt = row.get(config.prompt_field)
    if prompt is not None and row.get("messages") is not None:
        raise DataError(f"{place}: has both {config.prompt_field!r} and 'messages': keep one")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{place}: the prompt is empty")
        return (Message(role="user", content=prompt),)
    turns = row.get("messages")
    if prompt is not None or not isinstance(turns, list) or not turns:
        raise DataError(
            f"{place}: needs a text field {config.prompt_field!r} (task.prompt_field names it) or 'messages'"
        )
    messages = []
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
            raise DataError(f"{place}: every message needs a 'role' and a non-empty text 'content'")
        if role not in _ROLES:
            raise DataError(f"{place}: role {role!r} is not known; give one of {', '.join(_ROLES)}")
        if role == "system" and config.system_prompt is not None:
            raise DataError(f"{place}: brings a system message, and task.system_prompt is set too: keep one")
        messages.append(Message(role=role, content=content))
    return tuple(messages)


def _task(config: TaskConfig, messages: tuple[Message, ...], answer: str, extra: Mapping[str, Any]) -> Task:
    canonical = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    if config.system_prompt is not None:
        messages = (Message(role="system", content=config.system_prompt), *messages)
    return Task(id=hashlib.sha256(canonical.encode()).hexdigest()[:16], messages=messages, answer=answer, extra=extra)

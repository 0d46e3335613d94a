"""An evaluation from its settings to a store that is done: prepared, found or made, gone on with, sealed."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from burnish.config.evaluation import EvalConfig
from burnish.config.imports import import_by_path
from burnish.errors import ConfigError, DataError
from burnish.evaluation.generate import Answering
from burnish.evaluation.items import EvalItem, asked_items, choice_items, eval_tasks, pair_items
from burnish.evaluation.likelihood import TOKENS_AT_ONCE, compare_answers
from burnish.evaluation.perturb import PERTURBS
from burnish.evaluation.since_training import changed_since_training
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import asked_settings
from burnish.memory.measure import peak_memory_bytes
from burnish.models.load import ModelFacts, compute_repeatably, find_dtype, inspect_model, load_policy
from burnish.records import SamplingSettings
from burnish.reproducibility.code_state import read_code
from burnish.reproducibility.differences import method_of
from burnish.reproducibility.environment import environment_record
from burnish.reproducibility.record import model_digest, model_record, source_hash
from burnish.reproducibility.run_folder import RunFolder, utc_now
from burnish.rewards.scoring import require_scores
from burnish.rollout.generators.base import Generator
from burnish.rollout.generators.native import NativeGenerator
from burnish.rollout.plays import how_to_ask, judge_fingerprints, with_stops

_ENOUGH_TO_JUDGE = 20  # answers, from which on a reward that fails for most of them ends the evaluation

Progress = Callable[[int, int], None]
"""Called with the answers that there are and those that there will be: before the first batch, and after each."""
Evaluate = Callable[[Sequence[EvalItem]], tuple[list[dict[str, Any]], int]]
"""From items to their sample lines and the number of tokens that the model said or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalInputs:
    """What an evaluation reads, checked before any weight is loaded."""

    config: EvalConfig
    model: ModelFacts
    items: Sequence[EvalItem]
    answering: Answering | None
    """None where answers are compared and not sampled."""

    @property
    def samples_per_item(self) -> int:
        """Answers to each question."""
        return self.config.sampling.samples_per_item

    def label(self) -> str:
        """The model's name: its run, with the step where it is not the run's last, or its folder."""
        run = run_of(self.model.source)
        if run is None:
            is_name = not Path(self.config.model.path).exists()
            return self.config.model.path if is_name else Path(self.model.source).name
        return run.path.name if _is_newest(self.model.source) else f"{run.path.name}@{_step(self.model.source)}"

    def settings(self) -> dict[str, Any]:
        """What two evaluations must share to be compared; the same words as for the held-out items of a run."""
        task, sampling = self.config.task, self.config.sampling
        settings = asked_settings([item.asked() for item in self.items])
        if task.kind != "generate":
            return settings | {"scoring": {"kind": task.kind, "normalise": task.normalise}}
        drawn: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
        }
        if sampling.temperature > 0:
            drawn |= {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p}
        if task.environment is not None:
            drawn["max_turns"] = sampling.max_turns
        if task.perturb is not None:
            settings["perturb"] = task.perturb
        scoring = {"reward": judge_fingerprints(task), "right_at": task.right_at}
        return settings | {"scoring": scoring, "sampling": drawn}

    def origin(self) -> dict[str, Any]:
        """Where the scores come from, beyond the settings."""
        files = model_record(self.model.source, base=self.model.base, commit=self.model.commit)
        origin: dict[str, Any] = {
            "model": {"source": self.model.source, "commit": self.model.commit, "sha256": model_digest(files)},
            "compute_dtype": find_dtype(self.config.model),
            "is_reward_model": self.model.is_value_model,
            "eval_seed": self.config.seed,
            "run": None,
            "step": None,
            "seed": None,
            "was_selected_on": False,
        }
        run = run_of(self.model.source)
        if run is not None:
            trained = run.config()
            seen = {item["id"] for step in run.steps("evaluations")[-1:] for item in run.read_step("evaluations", step)}
            chosen = not _is_newest(self.model.source) and any(item.id in seen for item in self.items)
            origin |= {
                "run": run.path.name,
                "step": _step(self.model.source),
                "seed": trained.get("seed"),
                "method": method_of(trained),
                "was_selected_on": chosen,
                "differs_from_run": changed_since_training(
                    run, self.model, self.config.task, [item.asked() for item in self.items]
                ),
            }
        return origin


def prepare_eval(config: EvalConfig) -> EvalInputs:
    """Find the model, read and render the items, import what scores them. Loads no weights.

    Raises:
        UserError: one of them cannot be used.
    """
    task, sampling = config.task, config.sampling
    model = inspect_model(config.model.path)
    if model.is_value_model and task.kind != "pairs":
        raise ConfigError(f"model.path={config.model.path} is a reward model: it is evaluated with task.kind=pairs")
    if task.kind == "pairs":
        return EvalInputs(config=config, model=model, items=pair_items(task, model), answering=None)
    tasks = eval_tasks(task)
    if task.kind == "choices":
        return EvalInputs(config=config, model=model, items=choice_items(task, tasks, model), answering=None)
    asking = how_to_ask(task, config.model, model, max_tokens=sampling.max_tokens, max_turns=sampling.max_turns)
    settings = SamplingSettings(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        stop=sampling.stop,
    )
    parse = None if task.parser is None else import_by_path(task.parser, "task.parser", arguments=("text",))
    answering = Answering(
        play=asking.play,
        sampling=with_stops(settings, model),
        samples_per_item=sampling.samples_per_item,
        right_at=task.right_at,
        parse=parse,
        seed=config.seed,
    )
    items = asked_items(task, tasks, asking.render, seed=config.seed)
    return EvalInputs(config=config, model=model, items=items, answering=answering)


def find_or_make_store(inputs: EvalInputs) -> EvalStore:
    """The store of exactly this evaluation: the one that is there, done or begun, or a new one.

    Raises:
        DataError: another one has its name.
    """
    config, settings, origin = inputs.config, inputs.settings(), inputs.origin()
    task = config.task
    decides = {
        "config": config.model_dump(mode="json", exclude={"name": True, "evals_folder": True, "model": {"path"}}),
        "settings": settings,
        "model": origin["model"]["sha256"],
        "prompts": [[item.id, item.prompt.token_ids, item.cluster, dict(item.slices)] for item in inputs.items],
        "parser": None if task.parser is None else source_hash(task.parser, "task.parser"),
        "perturb": None if task.perturb in (None, *PERTURBS) else source_hash(str(task.perturb), "task.perturb"),
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    source = task.held_out_source or task.source
    about = Path(source).stem if Path(source).suffix else source.rpartition(":")[2]
    name = config.name or re.sub(r"[^A-Za-z0-9._-]+", "-", f"{inputs.label()}-{about}")[:56].strip("-.")
    path = config.evals_folder / f"{name}-{key[:6]}"
    if path.exists():
        store = EvalStore.open(path)
        if store.record().get("key_sha256") != key:
            raise DataError(f"{path} holds another evaluation: give this one a --name")
        return store
    code = read_code(config.evals_folder)
    record = {
        "label": inputs.label(),
        "task": {"source": source, "kind": task.kind, "num_items": len(inputs.items), "items": settings["items"]},
        "settings": settings,
        "origin": origin,
        "samples_per_item": inputs.samples_per_item,
        "status": "running",
        "created": utc_now(),
        "key_sha256": key,
        "config": config.model_dump(mode="json"),
        "code": code.record,
        "environment": environment_record(config.model.num_threads),
    }
    store = EvalStore.create(path, record, (item.line() for item in inputs.items))
    code.write(store.path)
    return store


def run_eval(inputs: EvalInputs, store: EvalStore, progress: Progress, *, generator: Generator | None = None) -> None:
    """Answer what is not answered yet, batch by batch, and seal the store; one that is done stays as it is.

    `generator` answers in the place of the model.

    Raises:
        DataError: the reward failed for more than half of the answers.
        UserError: another process evaluates into the store.
    """
    if store.is_done:
        return
    total = len(inputs.items) * inputs.samples_per_item
    with store.locked():
        done = store.keep_whole_batches()
        progress(done, total)
        answer: Evaluate | None = None
        failures = [line["failure"] for line in store.samples() if line["failure"] is not None]
        for batch in _batches(inputs):
            if done >= total or batch.start * inputs.samples_per_item < done:
                continue  # whole batches only were kept
            answer = answer or _evaluator(inputs, generator)
            began = time.monotonic()
            lines, num_tokens = answer([inputs.items[index] for index in batch])
            failures += [line["failure"] for line in lines if line["failure"] is not None]
            if done + len(lines) >= min(total, _ENOUGH_TO_JUDGE):
                require_scores(failures, done + len(lines))
            seconds = time.monotonic() - began
            times = {"seconds": seconds, "tokens": num_tokens, "ended": utc_now()}
            store.add(lines, {"items": len(batch), **times, "peak_memory_bytes": peak_memory_bytes()})
            done += len(lines)
            progress(done, total)
        store.seal(efficiency_of(store.batches()))


def evaluate(config: EvalConfig, progress: Progress = lambda done, total: None) -> EvalStore:
    """All of it: prepare, find or make the store, answer what is left, seal.

    Raises:
        UserError: something that the evaluation needs cannot be used.
    """
    inputs = prepare_eval(config)
    store = find_or_make_store(inputs)
    run_eval(inputs, store, progress)
    return store


def efficiency_of(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time of a batch, tokens and answers a second, and the most memory: what batches.jsonl says."""
    seconds = np.array([batch["seconds"] for batch in batches])
    total = float(seconds.sum())
    percentiles = {f"batch_seconds_p{p}": float(np.percentile(seconds, p)) for p in (50, 90, 99)}
    return {
        **percentiles,
        "batches": len(batches),
        "seconds": total,
        "tokens_per_second": sum(batch["tokens"] for batch in batches) / total,
        "answers_per_second": sum(batch["samples"] for batch in batches) / total,
        "peak_memory_bytes": max(batch["peak_memory_bytes"] for batch in batches),
    }


def run_of(source: str) -> RunFolder | None:
    """The run whose checkpoint a model folder is."""
    folder = Path(source).absolute().parent.parent
    return RunFolder(folder) if (folder / "run.json").is_file() and Path(source).parent.name == "checkpoints" else None


def _is_newest(source: str) -> bool:
    return Path(source).absolute() == max(Path(source).absolute().parent.glob("step-*"))


def _step(source: str) -> int:
    return int(Path(source).name.removeprefix("step-"))


def _batches(inputs: EvalInputs) -> Iterator[range]:
    """The same batches whenever it is run, so that an evaluation that was cut off repeats none of another size."""
    if inputs.answering is not None:
        size = max(1, inputs.config.sampling.max_rows // inputs.samples_per_item)
        for start in range(0, len(inputs.items), size):
            yield range(start, min(start + size, len(inputs.items)))
        return
    start, tokens = 0, 0
    for index, item in enumerate(inputs.items):
        needed = len(item.prompt.token_ids) + sum(len(branch.token_ids) for branch in item.branches)
        if index > start and tokens + needed > TOKENS_AT_ONCE:
            yield range(start, index)
            start, tokens = index, 0
        tokens += needed
    yield range(start, len(inputs.items))


def _evaluator(inputs: EvalInputs, generator: Generator | None) -> Evaluate:
    """Load the weights, unless somebody else answers."""
    config = inputs.config
    if inputs.answering is not None and generator is not None:
        return partial(inputs.answering.answers, generator.generate)
    compute_repeatably(config.model.num_threads)
    policy = load_policy(config.model, seed=0, kind="value" if inputs.model.is_value_model else "language")
    if inputs.answering is not None:
        max_rows = max(config.sampling.max_rows, inputs.samples_per_item)
        return partial(inputs.answering.answers, NativeGenerator(policy, max_rows=max_rows).generate)

    def compare(items: Sequence[EvalItem]) -> tuple[list[dict[str, Any]], int]:
        lines = compare_answers(policy, items, normalise=config.task.normalise)
        return lines, sum(len(item.prompt.token_ids) + sum(len(b.token_ids) for b in item.branches) for item in items)

    return compare

"""From a configuration to a finished run: check, load, train, report. The same way for a new and a resumed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from burnish.algorithms import grpo
from burnish.algorithms.grpo import GRPOConfig
from burnish.algorithms.hooks import Hooks
from burnish.config.loading import config_hash, to_yaml
from burnish.data.chat import render_prompt
from burnish.data.prompts import PromptOrder
from burnish.data.tasks import TaskSplit, load_tasks
from burnish.distributed.local import LocalRoles
from burnish.errors import BurnishError, ConfigError, UserError
from burnish.evaluation.held_out import HeldOut, accuracy, compare_items, verdict
from burnish.models.load import ModelFacts, inspect_model, load_policy
from burnish.models.policy import Policy
from burnish.monitoring.console import Progress
from burnish.records import Prompt, SamplingSettings, Task
from burnish.reproducibility.files import write_text
from burnish.reproducibility.record import (
    code_record,
    environment_record,
    model_record,
    source_hash,
    tasks_record,
)
from burnish.reproducibility.run_folder import RunFolder, utc_now
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.scoring import Reward, load_reward
from burnish.rollout.collect import Collector
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterAdamW


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run reads, checked before any weight is loaded."""

    model: ModelFacts
    tasks: TaskSplit
    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    reward: Reward

    def record(self, config: GRPOConfig) -> dict[str, Any]:
        """Their fingerprints: a resumed run must find the same ones."""
        return {
            "config_sha256": config_hash(config),
            "model": model_record(self.model.source, base=self.model.base, commit=self.model.commit),
            "tasks": tasks_record(self.tasks.train, self.tasks.held_out),
            "reward": {"path": config.task.reward, "source_sha256": source_hash(self.reward)},
        }


def check_inputs(config: GRPOConfig) -> Inputs:
    """Find the model, read the tasks, render every prompt, import the reward.

    Raises:
        UserError: one of them cannot be used.
    """
    reward = load_reward(config.task.reward)
    model = inspect_model(config.model.path)
    if model.base is not None and config.loss.kl_coefficient > 0:
        raise ConfigError(
            "loss.kl_coefficient cannot be used when model.path is an adapter: the starting model could only be had by "
            "switching the adapter off, and would be its base; merge the adapter into its base first"
        )
    tasks = load_tasks(config.task)
    limits = {"context_length": model.context_length, "max_tokens": config.rollout.max_tokens}

    def render(side: tuple[Task, ...]) -> tuple[Prompt, ...]:
        return tuple(render_prompt(model.tokenizer, task, **limits) for task in side)

    return Inputs(model=model, tasks=tasks, train=render(tasks.train), held_out=render(tasks.held_out), reward=reward)


def train(config: GRPOConfig, console: Console) -> RunFolder:
    """Make a run folder and train in it. Returns the folder; its record says whether the run finished."""
    inputs = check_inputs(config)
    policy = _load(config)
    record = {
        "created": utc_now(),
        "status": "running",
        "seed": config.seed,
        "code": code_record(),
        "environment": environment_record(config.model.num_threads),
        **inputs.record(config),
    }
    run = RunFolder.create(config.runs_folder, config.name)
    write_text(run.path / "config.yaml", to_yaml(config))
    run.write_record(record)
    with run.locked():
        _train(config, inputs, policy, run, console, event="started")
    return run


def resume(run: RunFolder, config: GRPOConfig, console: Console) -> RunFolder:
    """Go on from the newest checkpoint, or from the start where there is none yet.

    Raises:
        UserError: the run is finished, or what it reads has changed since.
    """
    with run.locked():
        record = run.record()
        if record["status"] == "finished":
            raise UserError(f"run {run.path.name} is finished: `burnish show {run.path.name}` shows it")
        inputs = check_inputs(config)
        now = inputs.record(config)
        if changed := [name.removesuffix("_sha256") for name, value in now.items() if record[name] != value]:
            raise UserError(
                f"run {run.path.name} cannot be resumed: its {' and '.join(changed)} changed since it started; "
                "restore what changed, or start a new run"
            )
        is_exact = (
            environment_record(config.model.num_threads) == record["environment"]
            and code_record()["package_sha256"] == record["code"]["package_sha256"]
        )
        if not is_exact:
            console.print("not bit-exact: the machine, a package or burnish itself is not what the run began with")
        run.update_record(status="running")
        _train(config, inputs, _load(config), run, console, event="resumed" if is_exact else "resumed_not_exact")
    return run


def report(run: RunFolder) -> str:
    """The run's last line, computed from its files."""
    first, last = (
        run.read_step("evaluations", step) for step in (run.steps("evaluations")[0], run.steps("evaluations")[-1])
    )
    lines = run.metrics()
    seconds = sum(line["seconds"] for line in lines)
    peak = max(line["peak_memory_bytes"] for line in lines)
    return f"{verdict(compare_items(first, last))}; training wall time {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a run computes with, restored to where it goes on."""

    optimizer: MasterAdamW
    roles: LocalRoles
    state: TrainState


def _load(config: GRPOConfig) -> Policy:
    torch.set_num_threads(config.model.num_threads)
    torch.use_deterministic_algorithms(True)
    # Filling what is about to be written costs a twentieth of a step; nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it up so
    return load_policy(config.model, seed=seed_for(config.seed, "adapter"))


def _restore(config: GRPOConfig, policy: Policy, run: RunFolder) -> _Parts:
    optimizer = MasterAdamW(policy.trainable(), config.optimizer)
    learner = Learner(
        policy,
        optimizer,
        micro_batch_tokens=config.train.micro_batch_tokens,
        temperature=config.rollout.temperature,
    )
    generator = NativeGenerator(policy, max_rows=config.rollout.max_rows)
    roles = LocalRoles(learner, generator, keeps_reference=config.loss.kl_coefficient > 0)
    state = TrainState()
    if saved := checkpoints(run.checkpoints):
        state = load_checkpoint(saved[-1], policy, optimizer)
    run.rewind(state.step)
    return _Parts(optimizer=optimizer, roles=roles, state=state)


def _train(config: GRPOConfig, inputs: Inputs, policy: Policy, run: RunFolder, console: Console, *, event: str) -> None:
    recorded = len(run.metrics())
    parts = _restore(config, policy, run)
    state = parts.state
    run.add_event(event, step=state.step)
    progress = Progress(console, num_steps=config.train.num_steps)
    sampling = _sampling(config, policy)
    timeout_seconds = config.task.reward_timeout_seconds
    held_out = HeldOut(
        prompts=inputs.held_out,
        reward=inputs.reward,
        reward_timeout_seconds=timeout_seconds,
        sampling=replace(sampling, temperature=0.0),
        right_at=config.evaluation.right_at,
    )

    def evaluate(step: int) -> float:
        items = held_out.evaluate(parts.roles.sample)
        run.write_step("evaluations", step, items)
        return accuracy(items)

    def save(state: TrainState) -> None:
        keep_last = config.checkpoint.keep_last
        path = save_checkpoint(run.checkpoints, policy, parts.optimizer, state, keep_last=keep_last)
        run.add_event("saved", step=state.step, checkpoint=path.name)

    hooks = Hooks(
        run=run,
        progress=progress,
        num_steps=config.train.num_steps,
        checkpoint=config.checkpoint,
        evaluate_every=config.evaluation.every_steps,
        evaluate=evaluate,
        save=save,
    )
    collect = Collector(
        group_size=config.rollout.group_size,
        sampling=sampling,
        reward=inputs.reward,
        reward_timeout_seconds=timeout_seconds,
        seed=config.seed,
    )
    prompts = PromptOrder(inputs.train, seed=config.seed, position=state.task_position)
    progress.say(f"run {run.path}: step {state.step} of {config.train.num_steps}")
    if recorded > state.step:
        progress.say(f"steps {state.step + 1} to {recorded} were not saved yet and are repeated")
    with _failure_recorded(run), _stop_on_signal(hooks):
        if 0 not in run.steps("evaluations"):
            progress.say(f"answering {len(inputs.held_out)} held-out questions before training")
            progress.say(f"held-out accuracy before training: {evaluate(0):.3f} on {len(inputs.held_out)} items")
        with progress.running():
            grpo.train(config, parts.roles, prompts, collect, hooks, state)
        if state.step < config.train.num_steps:
            save(state)  # the signal may have come after the step's own turn to save
    _conclude(run, state, config.train.num_steps, progress)


def _conclude(run: RunFolder, state: TrainState, num_steps: int, progress: Progress) -> None:
    if state.step < num_steps:
        run.add_event("interrupted", step=state.step)
        run.update_record(status="interrupted")
        progress.say(f"stopped after step {state.step}; go on with: burnish resume {run.path}")
    else:
        run.update_record(status="finished", finished=utc_now())
        progress.say(f"trained model: {checkpoints(run.checkpoints)[-1]}")
        progress.say(report(run))


def _sampling(config: GRPOConfig, policy: Policy) -> SamplingSettings:
    """A stop string that is a special token is a stop token: texts are decoded without special tokens."""
    names = list(policy.tokenizer.all_special_tokens)
    special = dict(zip(names, policy.tokenizer.all_special_ids, strict=True))
    stop_tokens = [special[stop] for stop in config.rollout.stop if stop in special]
    return SamplingSettings(
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        stop=tuple(stop for stop in config.rollout.stop if stop not in special),
        stop_token_ids=(*policy.stop_token_ids, *stop_tokens),
    )


@contextmanager
def _failure_recorded(run: RunFolder) -> Iterator[None]:
    """Let the run folder say why a run ended, then let the error go on."""
    try:
        yield
    except BurnishError as error:
        with suppress(BurnishError):  # a disk that is full is full for this note too
            run.update_record(status="failed", failure=str(error))
            run.add_event("failed", reason=str(error))
        raise


@contextmanager
def _stop_on_signal(hooks: Hooks) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the step finish and saves; a second one ends the process at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if hooks.should_stop:
            os.write(2, b"burnish: ended at once; `burnish resume last` goes on from the last checkpoint\n")
            os._exit(128 + signum)
        hooks.progress.say("finishing the step, then saving; once more ends at once")
        hooks.should_stop = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""What the algorithms that sample share: questions, a reward, held-out accuracy, a look at a step's rollouts."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import TypeAdapter, model_validator

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.memory_plan import Generation, LargestStep
from burnish.config.schema import RolloutConfig, RunConfig, TaskConfig, TaskEvaluationConfig
from burnish.data.packing import observed_positions, token_versions
from burnish.data.tasks import TaskSplit, load_tasks
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError, MachineError
from burnish.evaluation.held_out import HeldOut, Item
from burnish.losses.advantages import has_signal
from burnish.models.load import ModelFacts, inspect_model
from burnish.records import Branch, Example, Prompt, Rollout, RolloutGroup, SamplingSettings
from burnish.reproducibility.record import tasks_record
from burnish.rollout.collect import Collected, Collector, judged
from burnish.rollout.curriculum import MiddleFirst, PromptOrder, Uniform
from burnish.rollout.play import Play, Sample, conversation_line
from burnish.rollout.plays import how_to_ask, judge_fingerprints, with_stops
from burnish.training.checkpoint import TrainState

MEASURE = "accuracy"
COLUMNS = (
    "reward_mean",
    "reward_std",
    "groups_without_signal",
    "held_out",
    "kl",
    "entropy",
    "completion_tokens_mean",
    "truncated_share",
    "mismatch_mean",
    "tokens_per_second",
)

_COLLECTED = TypeAdapter(Collected)


class AskingConfig(RunConfig):
    """The sections of an algorithm that samples answers to tasks."""

    task: TaskConfig
    rollout: RolloutConfig = RolloutConfig()
    evaluation: TaskEvaluationConfig = TaskEvaluationConfig()

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> AskingConfig:
        if self.rollout.update_weights == "during" and self.cluster.kind == "local":
            raise ConfigError(
                "rollout.update_weights=during would be ignored: in one process nothing is learnt while it samples; "
                "set cluster.kind to ray, or leave it out"
            )
        if self.task.environment is None and self.rollout.changes("max_turns"):
            raise ConfigError("rollout.max_turns would be ignored: only a task.environment has several turns")
        if self.task.environment is not None and self.rollout.overlong_buffer:
            raise ConfigError(
                "rollout.overlong_buffer is for one answer: with task.environment let the environment judge"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInputs:
    """What a run reads, checked before any weight is loaded."""

    config: AskingConfig
    model: ModelFacts
    tasks: TaskSplit
    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    play: Play

    def shared(self) -> dict[str, Any]:
        """All but the configuration, for an algorithm that adds something to it."""
        return {name: getattr(self, name) for name in ("model", "tasks", "train", "held_out", "play")}

    def record(self) -> dict[str, Any]:
        """Fingerprints: a resumed run must find the same ones."""
        found = judge_fingerprints(self.config.task)
        token_ids = [prompt.token_ids for prompt in (*self.train, *self.held_out)]
        prompts = hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()
        return {"tasks": tasks_record(self.tasks.train, self.tasks.held_out), "prompts": prompts, "reward": found}

    def largest_step(self) -> LargestStep:
        """The longest prompts with completions of full length."""
        rollout, context = self.config.rollout, self.model.context_length
        turns = 1 if self.config.task.environment is None else rollout.max_turns
        prompts = heapq.nlargest(rollout.num_prompts, self.train, key=lambda prompt: len(prompt.token_ids))
        examples = []
        for prompt in prompts:
            length = min(turns * rollout.max_tokens, context - len(prompt.token_ids))
            branches = (Branch(token_ids=(0,) * length),) * rollout.group_size
            examples.append(Example(id=prompt.task.id, prompt_ids=prompt.token_ids, branches=branches))
        longest = max(len(prompt.token_ids) for prompt in (*self.train, *self.held_out))
        rows, new = rollout.max_rows, min(rollout.max_tokens, context - longest)
        sampling = Generation(min(rollout.num_prompts, rows // rollout.group_size), rollout.group_size, longest, new)
        return LargestStep(examples, (sampling, Generation(min(len(self.held_out), rows), 1, longest, new)))

    def summary(self) -> str:
        """What `--dry-run` says."""
        longest = max(len(prompt.token_ids) for prompt in (*self.train, *self.held_out))
        return (
            f"{len(self.train)} questions to train on, {len(self.held_out)} held out, longest prompt {longest} tokens, "
            f"model {self.model.source}, {self.config.train.num_steps} steps of {self.config.rollout.num_prompts} x "
            f"{self.config.rollout.group_size} completions\n"
            f"the first prompt, as the model reads it:\n{self.train[0].text}"
        )

    def sampling(self) -> SamplingSettings:
        """How answers are drawn in training."""
        rollout = self.config.rollout
        settings = SamplingSettings(max_tokens=rollout.max_tokens, temperature=rollout.temperature, stop=rollout.stop)
        return with_stops(settings, self.model)

    def collector(self) -> Collector:
        """What samples and scores a step."""
        return Collector(
            group_size=self.config.rollout.group_size,
            sampling=self.sampling(),
            play=self.play,
            overlong_buffer=self.config.rollout.overlong_buffer,
            seed=self.config.seed,
        )

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs: nothing is needed of the starting weights."""

    def evaluate(self, roles: Roles) -> list[Item]:
        """Greedy answers to the held-out questions, each right or wrong."""
        held_out = HeldOut(
            prompts=self.held_out,
            play=self.play,
            sampling=replace(self.sampling(), temperature=0.0),
            right_at=self.config.evaluation.right_at,
        )
        return held_out.evaluate(roles.sample)


def check_tasks(config: AskingConfig) -> TaskInputs:
    """Find the model, read the tasks, render every prompt, import the reward or the environment.

    Raises:
        UserError: one of them cannot be used.
    """
    model, rollout = inspect_model(config.model.path), config.rollout
    asking = how_to_ask(config.task, config.model, model, max_tokens=rollout.max_tokens, max_turns=rollout.max_turns)
    tasks = load_tasks(config.task)
    train, held_out = (tuple(map(asking.render, side)) for side in (tasks.train, tasks.held_out))
    return TaskInputs(config=config, model=model, tasks=tasks, train=train, held_out=held_out, play=asking.play)


def refuse_adapter(model: ModelFacts, needs: RoleNeeds) -> None:
    """Refuse to train an adapter where the weights that the run starts from are needed.

    Raises:
        ConfigError: they are needed.
    """
    if model.base is not None and needs.reference:
        raise ConfigError(
            f"model.path={model.source} is an adapter, and this loss compares with the starting model, which could "
            "only be had by switching the adapter off and would be its base: merge the adapter into its base first"
        )


def rollout_steps(
    config: AskingConfig, inputs: TaskInputs, roles: Roles, hooks: Hooks, state: TrainState
) -> Iterator[Collected]:
    """The scored groups of each step, from where `state` stands to the end of the run, or until it should stop.

    With `rollout.lag` a step is sampled so many steps before it is learnt from. A checkpoint has what was sampled by
    then, so that nothing is sampled twice, or with other weights.
    """
    order = _prompt_order(config, inputs, hooks, state)
    collect = inputs.collector()
    ahead: deque[Future[Collected]] = deque(map(_done, state.ahead))

    def settle() -> None:
        waiting = enumerate(ahead, start=state.step + 1)
        collected = [within(config.cluster.timeout_seconds, each, step) for step, each in waiting]
        state.ahead = [_COLLECTED.dump_python(each, mode="json") for each in collected]
        state.data_position = order.position

    hooks.settle = settle
    hooks.before_steps()
    while state.step < config.train.num_steps and not hooks.should_stop:
        for step in range(state.step + len(ahead), min(state.step + 1 + config.rollout.lag, config.train.num_steps)):
            ahead.append(roles.aside(partial(_step, config, collect, order, step, state.weight_version)))
        found = within(config.cluster.timeout_seconds, ahead.popleft(), state.step + 1)
        _report_failures(hooks, state.step + 1, found)
        yield replace(found, learner_version=state.weight_version)


def _step(
    config: AskingConfig, collect: Collector, order: PromptOrder, step: int, weight_version: int, sample: Sample
) -> Collected:
    """The groups of one step.

    With `rollout.max_refills`, prompts whose group has no signal are replaced by further ones (dynamic sampling, DAPO,
    Yu et al. 2025, section 3.2); what then has a signal is the step, and the rest does not count.
    """

    def ask(number: int, *, first: int) -> Collected:
        return collect(sample, order.next(number, step=step), step=step, weight_version=weight_version, first=first)

    wanted = config.rollout.num_prompts
    found = ask(wanted, first=0)
    refills = 0
    while config.rollout.max_refills > refills and (missing := wanted - len(with_signal(found))) > 0:
        found += ask(missing, first=found.prompts_asked)
        refills += 1
    found.require_scores()
    order.learn(found.groups, step=step)
    if config.rollout.max_refills:
        # a step in which nothing has a signal is shown as it is
        found = replace(found, groups=tuple(with_signal(found)[:wanted]) or found.groups)
    return found


def within(seconds: float, sampled: Future[Collected], step: int) -> Collected:
    """What was sampled for a step, if it is there in time. Raises a MachineError if not."""
    try:
        return sampled.result(timeout=seconds)
    except TimeoutError as error:
        raise MachineError(
            f"waited {seconds:.0f} s for the samples of step {step}, in vain: cluster.timeout_seconds sets the limit"
        ) from error


def _done(saved: dict[str, Any]) -> Future[Collected]:
    done: Future[Collected] = Future()
    done.set_result(_COLLECTED.validate_python(saved))
    return done


def _prompt_order(config: AskingConfig, inputs: TaskInputs, hooks: Hooks, state: TrainState) -> PromptOrder:
    if config.rollout.curriculum == "uniform":
        return Uniform(inputs.train, seed=config.seed, position=state.data_position)

    def log(step: int, choices: list[dict[str, Any]]) -> None:
        hooks.run.add_event("prompts_chosen", step=step + 1, choices=choices)

    right_at = config.evaluation.right_at
    return MiddleFirst(inputs.train, seed=config.seed, pass_rates=state.pass_rates, right_at=right_at, log=log)


def with_signal(collected: Collected) -> list[RolloutGroup]:
    """Groups whose rewards differ; how long an answer is has no say (DAPO looks at correctness alone)."""
    return [group for group in collected.groups if has_signal([judged(rollout) for rollout in group.rollouts])]


def _report_failures(hooks: Hooks, step: int, collected: Collected) -> None:
    """Say and record which rewards failed in a step, and end the time of sampling."""
    hooks.after_sampling()
    if collected.failures:
        first = collected.failures[0].reason
        hooks.progress.say(f"step {step}: the reward failed for {len(collected.failures)} completions; {first}")
    for failure in collected.failures:
        hooks.run.add_event("reward_failed", step=step, **asdict(failure))
    for retried in collected.retried:
        hooks.run.add_event("environment_retried", step=step, **asdict(retried))


def rollout_metrics(collected: Collected) -> dict[str, Any]:
    """What the samples of a step look like."""
    groups = collected.groups
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    every_reward = np.concatenate(rewards)
    lengths = np.array([rollout.num_sampled for rollout in rollouts])
    parts = [rollout.components for rollout in rollouts]
    return {
        "reward_mean": float(every_reward.mean()),
        "reward_std": float(every_reward.std()),
        **{
            f"reward_mean.{name}": float(np.mean([part[name] for part in parts if name in part]))
            for name in sorted({name for part in parts for name in part})
        },
        "groups_without_signal": sum(not has_signal(rewards_G) for rewards_G in rewards) / len(groups),
        "reward_failures": len(collected.failures),
        "prompts_asked": collected.prompts_asked,
        "completions_asked": collected.completions_asked,
        "tokens": int(lengths.sum()),
        "completion_tokens_mean": float(lengths.mean()),
        "truncated_share": float(np.mean([each.completion.finish_reason == "length" for each in rollouts])),
        **_staleness(collected),
        **(_conversation_metrics(collected, rollouts) if any(each.turns for each in rollouts) else {}),
        "rollouts_sha256": token_ids_hash(groups),
    }


def _staleness(collected: Collected) -> dict[str, float]:
    """How many weight versions older than the learner's were those that sampled a token."""
    ages = collected.learner_version - np.concatenate(
        [
            np.delete(token_versions(rollout.completion, group.weight_version), observed_positions(rollout))
            for group in collected.groups
            for rollout in group.rollouts
        ]
    )
    return {"staleness_mean": float(ages.mean()), "staleness_max": float(ages.max())}


def _conversation_metrics(collected: Collected, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    return {
        "turns_mean": float(np.mean([len(each.turns) for each in rollouts])),
        "observed_tokens_mean": float(
            np.mean([len(each.completion.token_ids) - each.num_sampled for each in rollouts])
        ),
        "turns_used_up_share": float(np.mean([each.ended == "turns" for each in rollouts])),
        "context_used_up_share": float(np.mean([each.ended == "context" for each in rollouts])),
        "environment_retries": len(collected.retried),
    }


def rollout_lines(groups: Sequence[RolloutGroup], advantages: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Groups as they are stored."""
    return [
        {
            "group": group.id,
            "task_id": group.prompt.task.id,
            "messages": [asdict(message) for message in group.prompt.task.messages],
            "prompt": group.prompt.text,
            "answer": group.prompt.task.answer,
            "weight_version": group.weight_version,
            "rollouts": [
                {
                    "text": rollout.completion.text,
                    "token_ids": rollout.completion.token_ids,
                    "finish_reason": rollout.completion.finish_reason,
                    "reward": rollout.reward,
                    "components": dict(rollout.components),
                    "advantage": advantage,
                    **({"versions": versions} if (versions := rollout.completion.versions) else {}),
                    **conversation_line(rollout.turns, rollout.ended),
                }
                for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
            ],
        }
        for group, advantages_G in zip(groups, advantages, strict=True)
    ]


def token_ids_hash(groups: Sequence[RolloutGroup]) -> str:
    """sha256 of every sampled token of a step: two runs that agree here have sampled the same."""
    ids = [[rollout.completion.token_ids for rollout in group.rollouts] for group in groups]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

"""What happens around the steps of every algorithm: log, evaluate, save, stop."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.config.schema import CheckpointConfig
from burnish.losses.advantages import has_signal
from burnish.memory.measure import peak_memory_bytes
from burnish.monitoring.console import Progress
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Metric, RolloutGroup
from burnish.reproducibility.run_folder import RunFolder
from burnish.rollout.collect import Collected
from burnish.training.checkpoint import TrainState


@dataclass(kw_only=True)
class Hooks:
    """`evaluate(step)` returns the held-out accuracy; `save(state)` writes a checkpoint."""

    run: RunFolder
    progress: Progress
    num_steps: int
    checkpoint: CheckpointConfig
    evaluate_every: int
    evaluate: Callable[[int], float]
    save: Callable[[TrainState], None]
    should_stop: bool = False

    def before_steps(self) -> None:
        """Start the clock of the first step."""
        self._step_began = self._sampled = time.monotonic()

    def after_sampling(self, step: int, collected: Collected) -> None:
        """Note the time and the rewards that failed."""
        self._sampled = time.monotonic()
        if collected.failures:
            # one line a step: a reason that quotes its completion would be another one each time
            first = collected.failures[0].reason
            self.progress.say(f"step {step}: the reward failed for {len(collected.failures)} completions; {first}")
        for failure in collected.failures:
            self.run.add_event("reward_failed", step=step, **asdict(failure))

    def after_step(
        self,
        state: TrainState,
        collected: Collected,
        advantages: Sequence[Sequence[float]],
        parts: Iterable[dict[str, Metric]],
    ) -> None:
        """Log step `state.step` (counted from 1), then evaluate and save where it is time, or where the run ends."""
        learned = time.monotonic()
        lines = [rollout_line(*each) for each in zip(collected.groups, advantages, strict=True)]
        metrics: dict[str, Any] = {"step": state.step, **rollout_metrics(collected), **reduce_metrics(parts)}
        metrics["rollouts_sha256"] = token_ids_hash(collected.groups)
        metrics["seconds_sample"] = self._sampled - self._step_began
        metrics["seconds_learn"] = learned - self._sampled
        metrics["seconds"] = learned - self._step_began
        metrics["tokens_per_second"] = metrics["completion_tokens"] / metrics["seconds"]
        metrics["peak_memory_bytes"] = peak_memory_bytes()
        self.run.write_step("rollouts", state.step, lines)
        self.run.trim_rollouts(self.checkpoint.max_rollout_megabytes * 1e6)
        is_last = state.step == self.num_steps
        if is_last or state.step % self.evaluate_every == 0:
            metrics["held_out_accuracy"] = self.evaluate(state.step)
        if metrics["groups_without_signal"] == 1:
            self.progress.say(
                f"nothing learned in step {state.step}: the rewards inside each of {len(lines)} groups are equal"
            )
        self.run.add_metrics(metrics)
        self.progress.update(state.step, metrics)
        if is_last or self.should_stop or state.step % self.checkpoint.every_steps == 0:
            self.save(state)
        self._step_began = time.monotonic()


def rollout_metrics(collected: Collected) -> dict[str, float]:
    """What the samples of a step look like."""
    groups = collected.groups
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    every_reward = np.concatenate(rewards)
    lengths = np.array([len(completion.token_ids) for completion in completions])
    parts = [rollout.components for group in groups for rollout in group.rollouts]
    return {
        "reward_mean": float(every_reward.mean()),
        "reward_std": float(every_reward.std()),
        **{
            f"reward_mean.{name}": float(np.mean([part[name] for part in parts if name in part]))
            for name in sorted({name for part in parts for name in part})
        },
        "groups_without_signal": sum(not has_signal(rewards_G) for rewards_G in rewards) / len(groups),
        "reward_failures": len(collected.failures),
        "completion_tokens": int(lengths.sum()),
        "completion_tokens_mean": float(lengths.mean()),
        "truncated_share": float(np.mean([each.finish_reason == "length" for each in completions])),
    }


def rollout_line(group: RolloutGroup, advantages_G: Sequence[float]) -> dict[str, Any]:
    """A group as it is stored."""
    return {
        "group": group.id,
        "task_id": group.prompt.task.id,
        "messages": [asdict(message) for message in group.prompt.task.messages],
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
            }
            for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
        ],
    }


def token_ids_hash(groups: Sequence[RolloutGroup]) -> str:
    """sha256 of every sampled token of a step: two runs that agree here have sampled the same."""
    ids = [[rollout.completion.token_ids for rollout in group.rollouts] for group in groups]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

"""New weights beside those that serve: in the shadow, or as a canary with a share of the requests, until they are
promoted or rolled back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from burnish.config.serving import DeployConfig
from burnish.reproducibility.run_folder import utc_now
from burnish.serving.answers import Answered, Answers, Asked
from burnish.serving.asks import Arm, Weights
from burnish.serving.gate import Gate
from burnish.serving.refusals import RefusedError
from burnish.serving.service import Service, Wish

_KEPT_EVENTS = 1000
_SHADOW_OWNER = "shadow"
_STOPPED = {"roll_back": "rolled back", "promote": "promoted"}


@dataclass(slots=True, kw_only=True)
class Trial:
    """Weights that are tried. `share` of the requests are a canary's, or are repeated in the shadow."""

    weights: Weights
    source: str
    share: float
    gate: Gate
    began: float = field(default_factory=time.time)
    counts: dict[str, int] = field(default_factory=lambda: {"stable": 0, "canary": 0, "shadow": 0})
    shadow: dict[str, float] = field(default_factory=dict)
    """Sums over answers that both arms gave: equal, tokens of the stable, tokens of the shadow, failed."""


class Deployments:
    """One trial at a time for each model. Everything that happens is told to `on_event` and, where there is a file,
    written there.
    """

    def __init__(
        self,
        service: Service,
        config: DeployConfig,
        history: Path | None,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        self._service, self._config, self._history, self._on_event = service, config, history, on_event
        self._trials: dict[str, Trial] = {}
        self._shadowing: set[asyncio.Task[None]] = set()
        self._events: list[dict[str, Any]] = []
        service.on_answered.append(self.answered)

    def arm_for(self, model: str, key: str) -> Arm:
        """Who answers a request: the same for the same key, while a canary lasts."""
        trial = self._trials.get(model)
        if trial is None or trial.weights.arm != "canary":
            return "stable"
        digest = hashlib.sha256(f"{trial.weights.fingerprint} {key}".encode()).digest()
        return "canary" if int.from_bytes(digest[:8], "big") < trial.share * 2**64 else "stable"

    def share(self, model: str) -> float:
        """Of a model's requests, those that a canary gets."""
        trial = self._trials.get(model)
        return trial.share if trial is not None and trial.weights.arm == "canary" else 0.0

    def start(self, weights: Weights, source: str, share: float, entry: dict[str, Any] | None) -> None:
        """Try weights that the engine has, as their arm says. `entry` is what was registered of them.

        Raises:
            RefusedError: other weights of this model are being tried.
        """
        name, config = weights.name, self._config
        self.require_free(name)
        gate = Gate(
            alpha=config.alpha, margin=config.margin, min_pairs=config.min_answers, max_pairs=config.max_answers
        )
        self._service.engine.install(weights)
        self._trials[name] = Trial(weights=weights, source=source, share=share, gate=gate)
        self._tell(name, f"{weights.arm} began", share=share, registered=entry)

    def require_free(self, name: str) -> None:
        """Refuse a second trial.

        Raises:
            RefusedError: there is one.
        """
        if name in self._trials:
            raise RefusedError("invalid", f"{name}: other weights are being tried: promote them, or roll them back")

    def promote(self, name: str, reason: str) -> None:
        """Let what is tried serve from here on.

        Raises:
            RefusedError: nothing is tried.
        """
        self._end(name, "promote", reason)

    def roll_back(self, name: str, reason: str) -> None:
        """End a trial; what serves goes on.

        Raises:
            RefusedError: nothing is tried.
        """
        self._end(name, "roll_back", reason)

    def status(self, name: str) -> dict[str, Any]:
        """What is tried, how it does, and what happened so far."""
        trial = self._trials.get(name)
        events = [event for event in self._events if event["model"] == name]
        if trial is None:
            return {"trial": None, "events": events}
        found: dict[str, Any] = {
            "arm": trial.weights.arm,
            "version": trial.weights.version,
            "fingerprint": trial.weights.fingerprint,
            "source": trial.source,
            "share": trial.share,
            "seconds": time.time() - trial.began,
            "answers": dict(trial.counts),
        }
        if trial.weights.arm == "canary":
            found["measures"] = trial.gate.report()
        else:
            found["compared"] = _per_answer(trial.shadow)
        return {"trial": found, "events": events}

    def answered(self, answered: Answered) -> None:
        """Take an answer that is over."""
        trial, arm = self._trials.get(answered.weights.name), answered.weights.arm
        if trial is None or answered.request.at < trial.began or arm == "shadow":
            return
        trial.counts[arm] += 1
        if trial.weights.arm == "canary" and answered.ending != "cancelled":
            self._judge(trial, answered)

    def rated(self, model: str, arm: Arm, version: int, *, is_good: bool) -> None:
        """Take a rating of an answer."""
        trial = self._trials.get(model)
        if trial is None or trial.weights.arm != "canary" or arm == "shadow":
            return
        current = trial.weights if arm == "canary" else self._service.weights(model)
        if version == current.version:
            self._add(trial, "liked", arm, is_good)

    def repeat_in_shadow(self, answers: Answers, wish: Wish) -> None:
        """Ask the shadow what was asked, where there is one and nobody waits: users must not feel it."""
        trial, engine = self._trials.get(answers.weights.name), self._service.engine
        if trial is None or trial.weights.arm != "shadow" or engine.num_waiting or wish.schema is not None:
            return  # a form would have to be followed once more
        if engine.num_running + len(answers.all) > engine.max_rows // 2 or self._service.is_draining:
            return
        digest = hashlib.sha256(answers.id.encode()).digest()
        if int.from_bytes(digest[:8], "big") >= trial.share * 2**64:
            return
        task = asyncio.get_running_loop().create_task(self._shadow(trial, answers, wish))
        self._shadowing.add(task)
        task.add_done_callback(self._shadowing.discard)

    async def _shadow(self, trial: Trial, answers: Answers, wish: Wish) -> None:
        """Ask the shadow, and compare with what the stable weights said, once both are done."""
        name = answers.weights.name
        try:
            with self._service.lease(name, "shadow") as weights:
                if weights.policy is not trial.weights.policy:
                    return
                repeated = self._service.ask(weights, answers.prompts, wish, Asked(owner=_SHADOW_OWNER))
            await repeated.finish()
        except RefusedError:
            trial.shadow["failed"] = trial.shadow.get("failed", 0) + 1
            return
        until = time.monotonic() + self._service.limits.seconds
        while any(each.ending is None for each in answers.all) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for ours, theirs in zip(answers.all, repeated.all, strict=True):
            if ours.ending in ("stop", "length"):
                trial.counts["shadow"] += 1
                for key, value in (
                    ("equal", ours.token_ids == theirs.token_ids),
                    ("stable_tokens", len(ours.token_ids)),
                    ("shadow_tokens", len(theirs.token_ids)),
                    ("stable_at_limit", ours.ending == "length"),
                    ("shadow_at_limit", theirs.ending == "length"),
                ):
                    trial.shadow[key] = trial.shadow.get(key, 0.0) + value
                trial.shadow["answers"] = trial.shadow.get("answers", 0) + 1

    def _judge(self, trial: Trial, answered: Answered) -> None:
        arm = answered.weights.arm
        served = answered.ending in ("stop", "length")
        self._add(trial, "served", arm, served)
        if served and answered.timing is not None:
            first = answered.timing.queue + answered.timing.prefill
            self._add(trial, "finished", arm, answered.ending == "stop")
            self._add(trial, "quick", arm, first <= self._config.first_token_seconds)

    def _add(self, trial: Trial, measure: str, arm: Arm, value: bool) -> None:
        if self._trials.get(trial.weights.name) is not trial or arm == "shadow":
            return
        decision = trial.gate.add(measure, arm, value)
        if decision == "roll back":
            self.roll_back(trial.weights.name, trial.gate.worse() or "worse")
        elif decision == "promote" and self._config.is_automatic:
            shown = f"no measure is worse by {self._config.margin:g}"
            shown = shown if trial.gate.is_shown() else f"nothing was shown in {self._config.max_answers} answers"
            self.promote(trial.weights.name, shown)

    def _end(self, name: str, how: Literal["promote", "roll_back"], reason: str) -> None:
        trial = self._trials.pop(name, None)
        if trial is None:
            raise RefusedError("invalid", f"{name}: nothing is being tried")
        if how == "promote":
            self._service.engine.promote(name, trial.weights.arm)
        else:
            self._service.engine.remove(name, trial.weights.arm)
        self._tell(
            name,
            _STOPPED[how],
            reason=reason,
            version=trial.weights.version,
            source=trial.source,
            answers=dict(trial.counts),
            measures=trial.gate.report() if trial.weights.arm == "canary" else None,
        )

    def _tell(self, name: str, what: str, **details: Any) -> None:
        event = {"time": utc_now(), "model": name, "event": what, **details}
        self._events = [*self._events[-_KEPT_EVENTS:], event]
        self._on_event(event)
        if self._history is not None:
            with self._history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False) + "\n")


def _per_answer(sums: dict[str, float]) -> dict[str, float]:
    count = sums.get("answers", 0)
    means = {name: value / count for name, value in sums.items() if name not in ("answers", "failed")} if count else {}
    return {"answers": count, "failed": sums.get("failed", 0), **means}

"""New weights beside those that serve: in the shadow, or as a canary with a share of the requests, until they are
promoted or rolled back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from burnish.config.serving import DeployConfig
from burnish.reproducibility.run_folder import utc_now
from burnish.serving.answers import Answered, Answers, Asked
from burnish.serving.asks import Arm, EngineGoneError, Weights
from burnish.serving.gate import Decision, Gate
from burnish.serving.journal import Rated
from burnish.serving.refusals import RefusedError
from burnish.serving.service import Service, Wish

_LOG = logging.getLogger(__name__)
_KEPT_EVENTS = 1000
_MOST_OPEN = 10_000  # requests; more were forgotten by whoever asked
_SHADOW_OWNER = "the shadow"  # no key has a name with a space
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
    open: dict[str, Answers] = field(default_factory=dict)
    """Requests since it began that are not over, by id."""
    counted: set[str] = field(default_factory=set)
    """Users who stay with an arm: each counts once, however much is asked."""
    raters: set[str] = field(default_factory=set)
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
        self._writing = ThreadPoolExecutor(1, "burnish-deployments")  # a slow disk holds up nobody who asks
        service.on_answered.append(self.answered)

    def arm_for(self, model: str, key: str) -> Arm:
        """Who answers a request: the same for the same key, while a canary lasts."""
        trial = self._living(model)
        if trial is None or trial.weights.arm != "canary":
            return "stable"
        digest = hashlib.sha256(f"{trial.weights.fingerprint} {key}".encode()).digest()
        return "canary" if int.from_bytes(digest[:8], "big") < trial.share * 2**64 else "stable"

    def share(self, model: str) -> float:
        """Of a model's requests, those that a canary gets."""
        trial = self._trials.get(model)
        return trial.share if trial is not None and trial.weights.arm == "canary" else 0.0

    async def start(self, weights: Weights, source: str, share: float, entry: dict[str, Any] | None) -> None:
        """Try weights, as their arm says. `entry` is what was registered of them.

        Raises:
            RefusedError: other weights of this model are being tried.
        """
        name, config = weights.name, self._config
        self.require_free(name)
        gate = Gate(
            alpha=config.alpha, margin=config.margin, min_pairs=config.min_answers, max_pairs=config.max_answers
        )
        await asyncio.to_thread(self._service.engine.install, weights)
        self._trials[name] = Trial(weights=weights, source=source, share=share, gate=gate)
        self._tell(name, f"{weights.arm} began", share=share, registered=entry)

    def require_free(self, name: str) -> None:
        """Refuse a second trial.

        Raises:
            RefusedError: there is one.
        """
        if self._living(name) is not None:
            raise RefusedError("invalid", f"{name}: other weights are being tried: promote them, or roll them back")

    def promote(self, name: str, reason: str) -> None:
        """Let what is tried serve from here on.

        Raises:
            RefusedError: nothing is tried, or it can answer no more, and is rolled back.
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
        trial = self._living(name)
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

    def asked(self, answers: Answers, wish: Wish) -> None:
        """Take a request whose answers begin."""
        trial = self._trials.get(answers.weights.name)
        if trial is None:
            return
        if trial.weights.arm == "shadow":
            self._repeat_in_shadow(trial, answers, wish)
        trial.open[answers.id] = answers
        while len(trial.open) > _MOST_OPEN:
            del trial.open[next(iter(trial.open))]
        arm, request = answers.weights.arm, answers.all[0].request
        if arm == "shadow" or trial.weights.arm == "shadow" or trial.gate.is_full("served"):
            return
        if request.unit not in trial.counted:
            if request.user:
                trial.counted.add(request.unit)
            trial.gate.begin(answers.id, arm)

    def answered(self, answered: Answered) -> None:
        """Take an answer that is over."""
        trial = self._trials.get(answered.weights.name)
        answers = None if trial is None else trial.open.get(answered.request.id)
        if trial is None or answers is None:  # asked before the trial began
            return
        trial.counts[answered.weights.arm] += 1
        if answers.are_over:
            del trial.open[answers.id]
            self._decide(trial, trial.gate.end(answers.id, self._values(answers)))

    def rated(self, found: Rated, *, is_good: bool) -> None:
        """Take a rating. The first of a request counts, or of a user who stays with an arm."""
        trial = self._trials.get(found.model)
        if trial is None or trial.weights.arm != "canary" or found.arm == "shadow" or found.asked < trial.began:
            return
        current = trial.weights if found.arm == "canary" else self._service.weights(found.model)
        if found.fingerprint != current.fingerprint or found.unit in trial.raters or trial.gate.is_full("liked"):
            return
        trial.raters.add(found.unit)
        self._decide(trial, trial.gate.rate(found.unit, found.arm, is_good=is_good))

    def end_shadows(self) -> None:
        """Let go what nobody waits for."""
        for task in self._shadowing:
            task.cancel()

    def close(self) -> None:
        """Write what is still to be written of the history."""
        self._writing.shutdown(wait=True)

    def _repeat_in_shadow(self, trial: Trial, answers: Answers, wish: Wish) -> None:
        """Ask the shadow what was asked, if there is much room: what users ask must not wait for it."""
        if wish.schema is not None:  # a form would have to be followed once more
            return
        engine, num_answers = self._service.engine, len(answers.all)
        tokens = sum(len(each.prompt_ids) + each.max_tokens for each in answers.all)
        if engine.num_left + num_answers > engine.max_rows // 2 or self._service.is_draining:
            return
        if engine.reserved_tokens + 2 * tokens > engine.cache_tokens // 2:
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
        while not answers.are_over and time.monotonic() < until:
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

    def _values(self, answers: Answers) -> dict[str, bool]:
        """What the measures of the gate say of a request. One that was cancelled says at most that it was slow."""
        first, limit = answers.all[0], self._config.first_token_seconds
        values: dict[str, bool] = {}
        if any(each.ending in ("failed", "late") for each in answers.all):
            values["served"] = False
        elif all(each.ending in ("stop", "length") for each in answers.all):
            values["served"] = True
            values["finished"] = first.ending == "stop"
        if first.first_seconds is not None:
            values["quick"] = first.first_seconds <= limit
        elif first.seconds > limit:
            values["quick"] = False
        return values

    def _decide(self, trial: Trial, decision: Decision) -> None:
        name = trial.weights.name
        if self._living(name) is not trial:
            return
        if decision == "roll back":
            self.roll_back(name, trial.gate.worse() or "worse")
        elif decision == "promote" and self._config.is_automatic:
            shown = f"no measure is worse by {self._config.margin:g}"
            shown = shown if trial.gate.is_shown() else f"nothing was shown in {self._config.max_answers} answers"
            self.promote(name, shown)

    def _living(self, name: str) -> Trial | None:
        """What is tried of a model. What can answer no more is rolled back."""
        trial = self._trials.get(name)
        if trial is not None:
            try:
                self._service.engine.check_alive(name, trial.weights.arm)
            except EngineGoneError as error:
                self.roll_back(name, str(error))
                return None
        return trial

    def _end(self, name: str, how: Literal["promote", "roll_back"], reason: str) -> None:
        trial = self._trials.get(name)
        if trial is None:
            raise RefusedError("invalid", f"{name}: nothing is being tried")
        if how == "promote":
            try:
                self._service.engine.promote(name, trial.weights.arm)
            except EngineGoneError as error:
                self.roll_back(name, str(error))
                raise RefusedError(
                    "invalid", f"{name}: what was tried can answer no more, and is rolled back"
                ) from error
        else:
            self._service.engine.remove(name, trial.weights.arm)
        del self._trials[name]
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
            self._writing.submit(_append, self._history, event)


def _append(history: Path, event: dict[str, Any]) -> None:
    try:
        with history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
    except OSError:  # a full disk: what was decided holds, and `status` tells it
        _LOG.exception("the history of deployments could not be written: %s", event)


def _per_answer(sums: dict[str, float]) -> dict[str, float]:
    count = sums.get("answers", 0)
    means = {name: value / count for name, value in sums.items() if name not in ("answers", "failed")} if count else {}
    return {"answers": count, "failed": sums.get("failed", 0), **means}

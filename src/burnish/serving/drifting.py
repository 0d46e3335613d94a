"""The watch for drift in a running server: fed by its answers, told in its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from burnish.config.serving import DriftConfig
from burnish.serving.answers import Answered
from burnish.serving.drift import DriftWatch, record_answer
from burnish.serving.parts import Parts


def watch_drift(config: DriftConfig, parts: Parts, say: Callable[[str], None]) -> None:
    """Let every finished answer of the stable weights be watched, model by model. Other weights are watched anew: that
    they answer otherwise is what they are for. A reference from a file is that of the model that the server began with.
    """
    if config.window is None:
        return
    put = parts.metrics.exporter.set
    first = next(iter(parts.service.engine.models().values()))
    watches = {first.name: (first.version, DriftWatch(config))}
    without_file = config.model_copy(update={"reference_file": None})

    def take(answered: Answered) -> None:
        weights = answered.weights
        if weights.arm != "stable" or answered.ending not in ("stop", "length"):
            return
        version, watch = watches.get(weights.name, (0, None))
        if watch is None or version < weights.version:
            for finding in [] if watch is None else watch.findings():  # of weights that are gone
                put("burnish_serve_drift", 0.0, weights.name, finding.feature)
            watch = DriftWatch(without_file)
            watches[weights.name] = weights.version, watch
        elif version > weights.version:  # it began before the exchange
            return
        watch.add(
            record_answer(
                prompt_tokens=len(answered.prompt_ids),
                token_ids=answered.token_ids,
                logprobs=answered.logprobs,
                text=answered.text,
                finish_reason=answered.ending,
            )
        )
        for finding in watch.look(time.time()):
            put("burnish_serve_drift", float(finding.is_drifting), weights.name, finding.feature)
            if finding.statistic is not None:
                put("burnish_serve_drift_statistic", finding.statistic, weights.name, finding.feature)
            if finding.phase in ("begins", "ends"):
                say(f"{weights.name}: {finding.sentence}")

    parts.service.on_answered.append(take)

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.config.schema import ModelConfig
from burnish.config.serving import DeployConfig, EngineConfig, LimitsConfig
from burnish.records import SamplingSettings
from burnish.serving.asks import Ask, Done, Event, Failed, Token, Weights
from burnish.serving.deployments import Deployments
from burnish.serving.engine import Engine
from burnish.serving.metrics import ServeMetrics
from burnish.serving.native import NativeSampler
from burnish.serving.parts import Parts
from burnish.serving.sampler import MakeSampler
from burnish.serving.service import Service
from burnish.serving.weights import load_weights

MakeEngine = Callable[..., Engine]


class Heard:
    """What an engine says of one ask, and whether it is over."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def token_ids(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Token)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token | Done))

    @property
    def done(self) -> Done | None:
        return next((event for event in self.events if isinstance(event, Done)), None)

    @property
    def failure(self) -> Exception | None:
        return next((event.error for event in self.events if isinstance(event, Failed)), None)

    @property
    def is_over(self) -> bool:
        return self.done is not None or self.failure is not None


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until it is so.

    Raises:
        TimeoutError: it was not in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.005)


def ask(prompt_ids: tuple[int, ...], heard: Heard, *, max_tokens: int = 8, seed: int = 0, **settings: Any) -> Ask:
    names = {"temperature", "top_k", "top_p", "min_p", "stop", "stop_token_ids"}
    sampling = {"temperature": 0.0} | {key: settings.pop(key) for key in names & settings.keys()}
    return Ask(
        prompt_ids=prompt_ids,
        sampling=SamplingSettings(max_tokens=max_tokens, **sampling),
        seed=seed,
        on_event=heard,
        **settings,
    )


def submit(engine: Engine, asks: list[Ask], **limits: int) -> tuple[Weights, Callable[[], None]]:
    """Ask the weights that answer for `tiny` now."""
    with engine.lease("tiny") as weights:
        return weights, engine.submit(weights, asks, **limits)


@pytest.fixture(scope="session")
def load_tiny(tiny_folder: Path, tiny_teacher_folder: Path) -> Callable[..., Weights]:
    """The tiny model, or another one, as version N of `tiny`."""

    def load(version: int = 1, *, other: bool = False, dtype: str = "float32") -> Weights:
        path = tiny_teacher_folder if other else tiny_folder
        return load_weights(ModelConfig(path=str(path), compute_dtype=dtype), "tiny", version)

    return load


@pytest.fixture
def make_engine(load_tiny: Callable[..., Weights]) -> Iterator[MakeEngine]:
    made: list[Engine] = []

    def make(make_sampler: MakeSampler | None = None, **settings: Any) -> Engine:
        defaults = {"max_rows": 8, "max_waiting": 64, "prefill_tokens": 64, "cache_tokens": 100_000}
        options = EngineConfig(**(defaults | {"prefix_bytes": 10_000_000} | settings))
        engine = Engine(
            make_sampler or (lambda weights, wake: NativeSampler(weights, options)),
            max_rows=options.max_rows,
            max_waiting=options.max_waiting,
            cache_tokens=options.cache_tokens,
        )
        engine.install(load_tiny())
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop(10)


@pytest.fixture
def make_parts(make_engine: MakeEngine) -> Callable[..., Parts]:
    """The parts of a server without a door."""

    def make(engine: Engine | None = None, limits: LimitsConfig | None = None, **deploy: Any) -> Parts:
        service = Service(engine or make_engine(), limits or LimitsConfig())
        metrics = ServeMetrics(service)
        deployments = Deployments(service, DeployConfig(**deploy), None, metrics.deployed)
        return Parts(service=service, keys=(), metrics=metrics, deployments=deployments)

    return make

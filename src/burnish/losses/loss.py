"""What a loss is, and how a plain function becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from burnish.config.imports import check_arguments, import_object
from burnish.errors import ConfigError, DataError
from burnish.records import LossOutput, Metric, Scored, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor

Normalizer = Literal["scored_tokens", "sequences", "groups"]
LossFunction = Callable[[Scored, TokenBatch], "LossOutput | Tensor"]


class Loss(Protocol):
    """From what the model says of the scored tokens to a *sum*: the learner divides by the global count.

    A loss that compares the branches of a prompt (a preferred and a rejected answer) sets `needs_whole_groups`, and
    then finds them in one micro-batch. It reads nothing from the device: no `.item()`, no `float(tensor)`.
    """

    @property
    def normalizer(self) -> Normalizer:
        """The field of GlobalCounts that the sum is divided by."""
        ...

    @property
    def needs_whole_groups(self) -> bool:
        """Whether all branches of a prompt must stand in the same micro-batch."""
        ...

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """The sum over a micro-batch, and its metrics."""
        ...


def need(value: Tensor | None, name: str) -> Tensor:
    """A field of a batch that this loss cannot do without.

    Raises:
        DataError: the algorithm does not provide it.
    """
    if value is None:
        raise DataError(f"this loss needs {name}, which this algorithm does not provide")
    return value


@dataclass(frozen=True, slots=True)
class FunctionLoss:
    """A function `(scored, batch) -> LossOutput`, or just the summed loss, with what a loss must declare."""

    function: LossFunction
    normalizer: Normalizer = "scored_tokens"
    needs_whole_groups: bool = False

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        output = self.function(scored, batch)
        return output if isinstance(output, LossOutput) else LossOutput(total=output, metrics={})


def loss(
    *, normalizer: Normalizer = "scored_tokens", needs_whole_groups: bool = False
) -> Callable[[LossFunction], FunctionLoss]:
    """Decorate a function `(scored, batch) -> summed loss` to make it a loss."""
    _check_normalizer(normalizer, "@loss")

    def decorate(function: LossFunction) -> FunctionLoss:
        return FunctionLoss(function, normalizer, needs_whole_groups)

    return decorate


@dataclass(frozen=True, slots=True)
class WeightedLosses:
    """A weighted sum of losses; each component is a metric `loss.<name>`.

    All are divided by the count that the first one names; another one's own count is made up for by its weight.
    """

    losses: Mapping[str, Loss]
    weights: Mapping[str, float]

    @property
    def normalizer(self) -> Normalizer:
        """See Loss."""
        return next(iter(self.losses.values())).normalizer

    @property
    def needs_whole_groups(self) -> bool:
        """See Loss."""
        return any(each.needs_whole_groups for each in self.losses.values())

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        metrics: dict[str, Metric] = {}
        total: Tensor | float = 0.0
        for name, each in self.losses.items():
            output = each(scored, batch)
            scale = getattr(batch.counts, self.normalizer) / getattr(batch.counts, each.normalizer)
            total = total + self.weights[name] * scale * output.total
            # every micro-batch sees the global count, so the sum of the shares is the component's mean
            share = output.total.detach() / getattr(batch.counts, each.normalizer)
            metrics |= dict(output.metrics) | {f"loss.{name}": Metric(share, "sum")}
        return LossOutput(total=total, metrics=metrics)  # type: ignore[arg-type]  # a tensor: there is a loss


def _check_normalizer(normalizer: object, where: str) -> None:
    if normalizer not in get_args(Normalizer):
        raise ConfigError(
            f"{where}: normalizer={normalizer!r} is not known; give one of {', '.join(get_args(Normalizer))}"
        )


def load_loss(path: str, key: str) -> Loss:
    """A loss by `package.module:name`: what `loss` decorated, an object with the attributes of a Loss, a class whose
    instances are such and need no arguments, or a plain function.

    Raises:
        ConfigError: there is no such thing, or it does not take (scored, batch).
    """
    found = import_object(path, key)
    if isinstance(found, type):
        check_arguments(found, path, key, ())
        found = found()
    check_arguments(found, path, key, ("scored", "batch"))
    if hasattr(found, "normalizer") and hasattr(found, "needs_whole_groups"):
        declared: Loss = found
        _check_normalizer(declared.normalizer, path)
        return declared
    return FunctionLoss(found)

"""The check of a user's loss: what must hold for any loss, tried on small random batches, said in plain words."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from burnish.data.packing import ends_only, pack, split_batch
from burnish.errors import BurnishError
from burnish.losses.loss import Loss
from burnish.records import Branch, Example, Scored, TokenBatch

_PAIRS = 5
_TOLERANCE = 1e-7  # relative, in float64
_STEP = 1e-5
_READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "cpu")
_SAID_BY_MODEL = ("logprobs_S", "entropy_S", "values_S", "divergence_S")


def check_loss(loss: Loss, *, at_ends: bool = False) -> list[str]:
    """What is wrong with a loss, each in a sentence that names the input; empty where nothing was found.

    Every batch has pairs of answers with labels, grades, advantages and all log-probabilities, in float64. With
    `at_ends` it has one value a sequence, as a reward model's loss gets it. A loss whose gradient is on purpose not the
    derivative of its value has a true attribute `stops_gradient`.
    """
    case = _Case(seed=0, at_ends=at_ends)
    if finding := _outright(loss, case):
        return [finding]
    checks: Sequence[Callable[[Loss, _Case], Iterator[str]]] = (
        _gradient,
        _split,
        _order,
        _weights,
        _direction,
        _what_teaches_nothing,
        _grades,
        _settings,
        _hard_inputs,
        _reads_of_the_device,
    )
    findings: list[str] = []
    for check in checks:
        try:
            findings += check(loss, case)
        except BurnishError as error:
            return [
                *findings,
                f"it cannot be computed on a part of the batch: {error}. If it looks at both sides of a pair, decorate "
                'it with @loss(normalizer="groups", needs_whole_groups=True)',
            ]
    return findings


class _Case:
    """A random batch and what a model says of it; `said` are the leaves that a gradient is taken of."""

    def __init__(self, *, seed: int, at_ends: bool) -> None:
        generator = torch.Generator().manual_seed(seed)

        def length() -> int:
            return int(torch.randint(1, 6, (), generator=generator))

        self.at_ends = at_ends
        self.examples = [
            Example(
                id=str(index),
                prompt_ids=(1, 2),
                branches=(
                    Branch(token_ids=(3,) * length(), label=1.0, score=2.0 + index),
                    Branch(token_ids=(4,) * length(), label=-1.0, score=0.5 * index),
                ),
            )
            for index in range(_PAIRS)
        ]
        self.batch = self._packed(self.examples, generator)
        num_scored = len(self.batch.target_ids_S)

        def normal(scale: float) -> Tensor:
            return scale * torch.randn(num_scored, generator=generator, dtype=torch.float64)

        old_S = torch.as_tensor(self.batch.old_logprobs_S)
        self.said = {
            "logprobs_S": old_S + normal(0.05),
            "entropy_S": normal(0.3).abs() + 1,
            "values_S": normal(1.0),
            "divergence_S": normal(1.0).abs(),
        }

    def _packed(self, examples: Sequence[Example], generator: torch.Generator) -> TokenBatch:
        batch = pack(examples)
        batch = ends_only(batch) if self.at_ends else batch
        num_scored = len(batch.target_ids_S)

        def normal(scale: float) -> Tensor:
            return scale * torch.randn(num_scored, generator=generator, dtype=torch.float64)

        old_S = -(normal(1.0).abs() + 0.3)
        advantages_B = torch.randn(len(batch.group_B), generator=generator, dtype=torch.float64)
        return replace(
            batch,
            labels_B=batch.labels_B.double(),
            scores_B=batch.scores_B.double(),
            weights_S=batch.weights_S.double(),
            old_logprobs_S=old_S,
            sampler_logprobs_S=old_S + normal(0.02),
            reference_logprobs_S=old_S + normal(0.3),
            advantages_S=advantages_B[batch.sequence_S],
            version_S=torch.zeros(num_scored, dtype=torch.long),
            old_values_S=normal(1.0),
            returns_S=normal(1.0),
        )


def _value(loss: Loss, case: _Case, batch: TokenBatch, said: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over its global count, and its gradient by what the model said."""
    leaves = {name: value.clone().requires_grad_() for name, value in said.items()}
    total = loss(Scored(**leaves), batch).total / getattr(batch.counts, loss.normalizer)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradient = {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(leaves.items(), found, strict=True)
    }
    return total.detach(), gradient


def _outright(loss: Loss, case: _Case) -> str | None:
    """What makes every other check pointless."""
    leaves = {name: value.clone().requires_grad_() for name, value in case.said.items()}
    try:
        total = loss(Scored(**leaves), case.batch).total
    except BurnishError as error:
        return f"it cannot be computed: {error}"
    except Exception as error:  # a user's code may raise anything
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name}, line {line.lineno}"
        return (
            f"it raises {type(error).__name__} on a batch of {_PAIRS} pairs: {error} ({where}; what the model says is "
            "float64 here, so make no tensor of a fixed type)"
        )
    if not isinstance(total, Tensor):
        return f"it returns {type(total).__name__} and not a tensor"
    if total.dim() != 0:
        return f"it returns shape {tuple(total.shape)}: it must be one number, the sum over the batch"
    if not torch.isfinite(total):
        return f"its value is {float(total)} on an ordinary batch"
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if total.requires_grad else ()
    if not any(part is not None and bool((part != 0).any()) for part in gradients):
        return "it has no gradient: nothing in it depends on the model, so nothing would be learnt"
    return None


def _gradient(loss: Loss, case: _Case) -> Iterator[str]:
    if getattr(loss, "stops_gradient", False):
        return
    _, gradient = _value(loss, case, case.batch, case.said)
    for name, value in case.said.items():
        direction = torch.randn(len(value), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        ahead, behind = (
            _value(loss, case, case.batch, {**case.said, name: value + sign * _STEP * direction})[0] for sign in (1, -1)
        )
        slope, expected = float((ahead - behind) / (2 * _STEP)), float((gradient[name] * direction).sum())
        if abs(slope - expected) > 1e-4 * max(1e-3, abs(slope), abs(expected)):
            yield (
                f"its gradient by {name} is not the derivative of its value ({expected:.6g} against {slope:.6g} by "
                "finite differences): something is detached, or rounded; set stops_gradient = True if that is meant"
            )


def _split(loss: Loss, case: _Case) -> Iterator[str]:
    whole, gradient = _value(loss, case, case.batch, case.said)
    value, parts, start = torch.zeros((), dtype=torch.float64), [], 0
    for micro in split_batch(case.batch, 7, keep_groups=loss.needs_whole_groups):
        own = slice(start, start + len(micro.target_ids_S))
        start = own.stop
        share, part = _value(loss, case, micro, {name: said[own] for name, said in case.said.items()})
        value = value + share
        parts.append(part)
    joined = {name: torch.cat([part[name] for part in parts]) for name in case.said}
    if not _near(value, whole) or any(not _near(joined[name], gradient[name]) for name in joined):
        hint = "" if loss.needs_whole_groups else ", or set needs_whole_groups if it compares the answers to a prompt"
        yield (
            f"it depends on how a step is cut into micro-batches: {float(whole):.6g} in one, {float(value):.6g} in "
            f"{len(parts)}; return the sum and leave the division to the learner{hint}"
        )


def _order(loss: Loss, case: _Case) -> Iterator[str]:
    whole, _ = _value(loss, case, case.batch, case.said)
    lengths_B = torch.bincount(case.batch.sequence_S).tolist()
    starts = [0, *torch.tensor(lengths_B).cumsum(0).tolist()]
    pairs = [2 * index for index in reversed(range(_PAIRS))]
    order_B = torch.tensor([sequence for pair in pairs for sequence in (pair, pair + 1)])
    order_S = torch.cat([torch.arange(starts[sequence], starts[sequence + 1]) for sequence in order_B.tolist()])
    changed = pack([case.examples[index] for index in reversed(range(_PAIRS))])
    changed = ends_only(changed) if case.at_ends else changed
    moved: dict[str, Any] = {}
    for field in fields(case.batch):
        value = getattr(case.batch, field.name)
        if isinstance(value, Tensor) and field.name not in ("token_ids_T", "position_ids_T"):
            moved[field.name] = value[order_S if field.name.endswith("_S") else order_B]
    moved |= {name: getattr(changed, name) for name in ("predictor_S", "sequence_S", "group_B", "target_ids_S")}
    batch = replace(changed, **moved)
    value, _ = _value(loss, case, batch, {name: said[order_S] for name, said in case.said.items()})
    if not _near(value, whole):
        both = f"{float(whole):.6g} forwards, {float(value):.6g} backwards"
        yield f"it depends on the order of the prompts in a batch: {both}"


def _weights(loss: Loss, case: _Case) -> Iterator[str]:
    is_first_S = case.batch.group_B[case.batch.sequence_S] == 0
    muted = replace(case.batch, weights_S=case.batch.weights_S.masked_fill(is_first_S, 0.0))
    _, gradient = _value(loss, case, muted, case.said)
    if any(bool((part[is_first_S] != 0).any()) for part in gradient.values()):
        yield "it ignores weights_S: answers of weight 0 still have a gradient; multiply what each answer adds by them"


def _direction(loss: Loss, case: _Case) -> Iterator[str]:
    """Each answer counts the same here, however long."""
    _, gradient = _value(loss, case, case.batch, case.said)
    pushed_S = gradient["values_S" if case.at_ends else "logprobs_S"]
    lengths_B = torch.bincount(case.batch.sequence_S)
    wanted = {
        "labels_B": (case.batch.labels_B, "the preferred answers likelier than the rejected ones"),
        "advantages_S": (case.batch.advantages_S, "tokens of higher advantage likelier"),
    }
    for name, (sign, what) in wanted.items():
        if not (_depends(loss, case, name) or (name == "labels_B" and loss.needs_whole_groups)):
            continue
        sign_S = torch.as_tensor(sign) if name.endswith("_S") else torch.as_tensor(sign)[case.batch.sequence_S]
        if float((pushed_S * sign_S / lengths_B[case.batch.sequence_S]).sum()) >= 0:
            yield f"a step down its gradient does not make {what}: look for a wrong sign"


def _what_teaches_nothing(loss: Loss, case: _Case) -> Iterator[str]:
    """A field that moves the value and no gradient."""
    value, gradient = _value(loss, case, case.batch, case.said)
    for name in ("scores_B", "advantages_S"):
        other, changed = _value(loss, case, _perturbed(case, name, scale=20.0), case.said)
        if not _near(other, value) and all(_near(changed[each], gradient[each]) for each in gradient):
            yield f"{name} changes its value but not its gradient: that term teaches nothing"


def _grades(loss: Loss, case: _Case) -> Iterator[str]:
    """A better grade of the preferred answer must not weaken the push towards it."""
    if not loss.needs_whole_groups or case.at_ends or not _depends(loss, case, "scores_B"):
        return
    is_preferred_B = case.batch.labels_B > 0
    better = replace(case.batch, scores_B=case.batch.scores_B + is_preferred_B.double())
    pushes = [
        -float(_value(loss, case, batch, case.said)[1]["logprobs_S"][is_preferred_B[batch.sequence_S]].sum())
        for batch in (case.batch, better)
    ]
    if pushes[1] < pushes[0] - _TOLERANCE:
        yield (
            "a better grade of the preferred answer weakens the push towards it "
            f"({pushes[0]:.6g} to {pushes[1]:.6g}): a bonus on one side lowers the loss instead of asking for more"
        )


def _settings(loss: Loss, case: _Case) -> Iterator[str]:
    if not is_dataclass(loss) or isinstance(loss, type):
        return
    unused: frozenset[str] = getattr(loss, "unused_settings", frozenset())
    far = {name: value + 2.5 * _noise(len(value)) for name, value in case.said.items()}  # where clips and bounds bite
    for field in fields(loss):
        setting = getattr(loss, field.name)
        if isinstance(setting, bool) or not isinstance(setting, float) or field.name in unused:
            continue
        other = replace(loss, **{field.name: 1.5 * setting + 0.1})
        if all(_same(loss, other, case, said) for said in (case.said, far)):
            yield f"nothing reads its setting {field.name}"


def _same(first: Loss, second: Loss, case: _Case, said: dict[str, Tensor]) -> bool:
    (value, gradient), (other, changed) = (_value(each, case, case.batch, said) for each in (first, second))
    return _near(other, value) and all(_near(changed[name], gradient[name]) for name in gradient)


def _noise(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def _hard_inputs(loss: Loss, case: _Case) -> Iterator[str]:
    zeros = {name: torch.zeros_like(value) for name, value in case.said.items()}
    hard = {
        "log-probabilities of -300": {"logprobs_S": torch.full_like(case.said["logprobs_S"], -300.0)},
        "log-probabilities near 0": {"logprobs_S": torch.full_like(case.said["logprobs_S"], -1e-9)},
        "values of 1,000": {"values_S": torch.full_like(case.said["values_S"], 1000.0)},
        "everything 0": zeros,
    }
    for what, changes in hard.items():
        value, gradient = _value(loss, case, case.batch, {**case.said, **changes})
        if not torch.isfinite(value) or not all(bool(torch.isfinite(part).all()) for part in gradient.values()):
            yield f"it is not finite for {what}"
    equal = replace(case.batch, advantages_S=torch.zeros_like(case.said["logprobs_S"]))
    if not torch.isfinite(_value(loss, case, equal, case.said)[0]):
        yield "it is not finite where all advantages are 0"


def _reads_of_the_device(loss: Loss, case: _Case) -> Iterator[str]:
    with _Reads() as reads:
        loss(Scored(**{name: value.clone().requires_grad_() for name, value in case.said.items()}), case.batch)
    if reads.found:
        yield (
            f"it reads a number back from the device ({', '.join(sorted(reads.found))}): that makes a GPU wait; keep "
            "tensors, and return what is to be logged as a Metric"
        )


class _Reads(TorchFunctionMode):
    """Notes which calls would make a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _READS:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


def _perturbed(case: _Case, name: str, *, scale: float) -> TokenBatch:
    value = torch.as_tensor(getattr(case.batch, name))
    changes: dict[str, Any] = {name: value + scale * _noise(len(value))}
    return replace(case.batch, **changes)


def _depends(loss: Loss, case: _Case, name: str) -> bool:
    value, gradient = _value(loss, case, case.batch, case.said)
    other, changed = _value(loss, case, _perturbed(case, name, scale=0.1), case.said)
    return not _near(other, value) or any(not _near(changed[each], gradient[each]) for each in gradient)


def _near(first: Tensor, second: Tensor) -> bool:
    scale = max(1.0, float(first.abs().max()), float(second.abs().max()))
    return float((first - second).abs().max()) <= _TOLERANCE * scale

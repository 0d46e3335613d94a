"""Checkpoints that are whole or absent, and are Hugging Face model folders at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.errors import BurnishError, MachineError
from burnish.models.policy import Policy
from burnish.reproducibility.files import remove_folder, replace_folder, require_free_space, sha256_of_file, write_text
from burnish.training.learner import Learner
from burnish.training.optimizer import state_bytes

_MANIFEST = "manifest.json"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_VALUE_HEAD = "own_value_head.weight"
_VALUE_HEAD_FILE = "value_head.safetensors"


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Everything that a run must remember besides weights and optimizer. Random draws need no entry: they are
    functions of the root seed and of these numbers. `pass_rates` are the curriculum's, by task. `ahead` are the steps
    that were sampled and not yet learnt from, the next one first.
    """

    step: int = 0
    weight_version: int = 0
    data_position: int = 0
    controllers: dict[str, float] = field(default_factory=dict)
    pass_rates: dict[str, list[float]] = field(default_factory=dict)
    ahead: list[dict[str, Any]] = field(default_factory=list)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder was saved after."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_bytes(learners: Mapping[str, Learner]) -> int:
    """Size of a checkpoint: master weights, what the optimizer keeps of them, and a margin for the rest."""
    weights = [
        4 * parameter.numel() + state_bytes(learner.optimizer.config, name, parameter.shape)
        for learner in learners.values()
        for name, parameter in learner.optimizer.parameters.items()  # a master may be a part
    ]
    return sum(weights) + 20_000_000


def save_checkpoint(
    folder: Path, learners: Mapping[str, Learner], state: TrainState, *, keep_last: int, is_writer: bool = True
) -> Path:
    """Write `folder`/step-NNNNNN with the float32 master weights, then remove all but the newest `keep_last`.

    The learner named "" is the checkpoint's model; another one stands in the subfolder of its name. Where weights are
    spread over processes, each of them calls this and one writes what all of them have: a checkpoint does not depend on
    how many they were.

    Raises:
        MachineError: the disk is full; earlier checkpoints are untouched.
    """
    final = folder / f"step-{state.step:06d}"
    tensors = {name: _tensors(learner, is_writer=is_writer) for name, learner in learners.items()}
    if not is_writer:
        return final
    folder.mkdir(exist_ok=True)
    remove_folder(final)
    require_free_space(folder, checkpoint_bytes(learners), "a checkpoint")

    def write(aside: Path) -> None:
        for name, learner in learners.items():
            place = aside / name
            place.mkdir(exist_ok=True)
            weights, state_tensors = tensors[name]
            try:
                _write_model(place, learner.policy, weights)
                save_file(state_tensors, place / _OPTIMIZER)
            except SafetensorError as error:
                raise MachineError(f"cannot write {final}: {error}; free space and resume") from error
        write_text(aside / _STATE, json.dumps(asdict(state)))
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        hashes = {path.relative_to(aside).as_posix(): sha256_of_file(path) for path in files}
        write_text(aside / _MANIFEST, json.dumps({"step": state.step, "sha256": hashes}, indent=1))

    replace_folder(final, write)
    for old in checkpoints(folder)[:-keep_last]:
        remove_folder(old)
    return final


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (folder / _MANIFEST).is_file()


def is_saved(folder: Path, step: int) -> bool:
    """Whether there is a whole checkpoint of a step."""
    return is_checkpoint(folder / f"step-{step:06d}")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if is_checkpoint(path))


def load_checkpoint(checkpoint: Path, learners: Mapping[str, Learner]) -> TrainState:
    """Check every file against the manifest and restore weights, optimizers and state.

    Raises:
        BurnishError: a file is missing or was changed.
    """
    for path in changed_files(checkpoint):
        raise BurnishError(
            f"{path} is missing or differs from its manifest: delete {checkpoint} to resume from an earlier one"
        )
    for name, learner in learners.items():
        learner.forget()  # what a step that failed had accumulated
        weights = _read_weights(checkpoint / name, learner.policy)
        learner.optimizer.load(weights, load_file(checkpoint / name / _OPTIMIZER))
    return TrainState(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))


def changed_files(checkpoint: Path, *, with_optimizer: bool = True) -> Iterator[Path]:
    """The files of a checkpoint that are missing, or not what they were when it was saved."""
    manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    for name, expected in manifest["sha256"].items():
        path = checkpoint / name
        if (with_optimizer or path.name != _OPTIMIZER) and not (path.is_file() and sha256_of_file(path) == expected):
            yield path


def _tensors(learner: Learner, *, is_writer: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The writer's weights and optimizer state. The others help to make them whole, and keep nothing."""
    both: list[dict[str, Tensor]] = []
    for named in (learner.optimizer.weights(), learner.optimizer.state_tensors()):
        kept = {}
        for name, tensor in named:
            if is_writer:
                kept[name] = tensor.cpu()
        both.append(kept)
    return both[0], both[1]


def _write_model(folder: Path, policy: Policy, weights: dict[str, Tensor]) -> None:
    policy.tokenizer.save_pretrained(folder)
    if _VALUE_HEAD in weights:  # beside the model, which stays one that others can load
        save_file({_VALUE_HEAD: weights.pop(_VALUE_HEAD)}, folder / _VALUE_HEAD_FILE)
    if policy.is_adapted:
        policy.module.peft_config["default"].save_pretrained(folder)  # type: ignore[union-attr,index]  # peft
        stored = {_adapter_name(name): weight.contiguous() for name, weight in weights.items()}
        save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return
    config = policy.model.config.to_dict() | {
        "dtype": "float32",
        "architectures": [type(policy.model).__name__],
    }
    write_text(folder / "config.json", json.dumps(config, indent=1, sort_keys=True))
    generation_config = getattr(policy.model, "generation_config", None)  # a value model has none
    if generation_config is not None:
        generation_config.save_pretrained(folder)
    stored = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _read_weights(folder: Path, policy: Policy) -> dict[str, Tensor]:
    if not policy.is_adapted:
        value_head = folder / _VALUE_HEAD_FILE
        return load_file(folder / "model.safetensors") | (load_file(value_head) if value_head.is_file() else {})
    stored = load_file(folder / "adapter_model.safetensors")
    return {name: stored[_adapter_name(name)] for name in policy.trainable()}


def _adapter_name(name: str) -> str:
    """Peft's name of a weight on disk, which leaves out the adapter's own name."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")

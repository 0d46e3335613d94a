"""burnish's side of the comparison with TRL: the same work, through the library's own training loops.

    python benchmarks/burnish_side.py sft|dpo|grpo [--steps 3] [--set section.key=value ...]

Prints one line `RESULT burnish_<work> {json}`: median seconds of a step by phase, tokens a second, peak memory. The
first step warms up and is not counted. `reference` is the seconds that one step's batch takes of the pass over the
reference: a run scores all that it visits once, before training, cold. Every completion of grpo has exactly `--new`
tokens, as on the peer's side, and no group is left out for want of a signal.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from burnish.algorithms.asking import TaskInputs
from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning
from burnish.algorithms.session import algorithm_of, load_roles, prepare, schema_of
from burnish.config.loading import resolve
from burnish.memory.allocator import restart_for_tensors
from burnish.memory.measure import peak_memory_bytes
from burnish.models.load import find_model, inspect_model
from burnish.monitoring.console import Progress
from burnish.reproducibility.run_folder import RunFolder
from burnish.training.checkpoint import TrainState

MODEL = "smollm2-135m"
TEXT = """the river ran past an old mill where two men were mending a wheel that had been broken since spring and
nobody in the valley could say who would pay for it or when the water would be high enough to turn it again"""


def score(completion: Any, task: Any) -> float:
    """A reward that differs inside every group."""
    return float(sum(completion.token_ids) % 97)


def main() -> None:
    """Read the arguments, measure, print."""
    restart_for_tensors()  # as `burnish train` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["sft", "dpo", "grpo"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    model = find_model(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BURNISH_CACHE"] = folder  # a reference kept from a run before would cost nothing here
        sections = {"sft": sft, "dpo": dpo, "grpo": grpo}[arguments.work](Path(folder), model, arguments.new)
        flags = [f"--{each}" for each in arguments.set]
        recipe = Path(folder) / "recipe.yaml"
        steps = {"train.num_steps": arguments.steps + 1, "checkpoint.every_steps": 1000, "evaluation.every_steps": 1000}
        recipe.write_text(json.dumps(nested({"algorithm": arguments.work, "model.path": model, **steps, **sections})))
        config = resolve(schema_of(arguments.work), str(recipe), flags=flags, environment={}).config
        print("RESULT", f"burnish_{arguments.work}", json.dumps(measure(config, Path(folder))))


def measure(config: Any, folder: Path) -> dict[str, Any]:
    """Run the training loop; what its own metrics say."""
    inputs: Any = prepare(config)
    if isinstance(inputs, TaskInputs):  # completions of full length
        inputs = replace(inputs, model=replace(inputs.model, stop_token_ids=()))
    roles = load_roles(config)
    began = time.monotonic()
    inputs.start(roles, lambda text: None)
    start_seconds = time.monotonic() - began
    run = RunFolder.create(folder, "bench")
    hooks = Hooks(
        run=run,
        progress=Progress(Console(quiet=True), num_steps=config.train.num_steps, columns=()),
        num_steps=config.train.num_steps,
        checkpoint=config.checkpoint,
        evaluate_every=10**6,
        evaluate=lambda step: 0.0,
        save=lambda state: None,
    )
    algorithm_of(config).train(config, inputs, roles, hooks, TrainState())
    lines = run.metrics()[1:]

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(map(value, lines)), 3)

    found = {
        "step": median(lambda line: line["seconds"]),
        "sample": median(lambda line: line["seconds_sample"]),
        "learn": median(lambda line: line["seconds_learn"]),
        "reference": round(start_seconds * share_of_reference(inputs), 3),
        "tokens": median(lambda line: line["tokens"]),
        "peak_rss_gb": round(peak_memory_bytes() / 1e9, 2),
    }
    if found["sample"] > 0.05:
        found["gen_tok_s"] = round(found["tokens"] / found["sample"], 1)
    return found


def share_of_reference(inputs: Any) -> float:
    """How much of what the reference scored before training is one step's batch; 0 where there is no reference."""
    if not isinstance(inputs, Learning) or inputs.reference is None:
        return 0.0
    return inputs.config.data.batch_size / (len(inputs.visited) + len(inputs.examples.held_out))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


def text(tokenizer: Any, random_: random.Random, num_tokens: int) -> str:
    """Words of this many tokens."""
    words = " ".join(random_.choice(TEXT.split()) for _ in range(num_tokens + 20))
    return str(tokenizer.decode(tokenizer(words, add_special_tokens=False)["input_ids"][:num_tokens]))


def rows_file(folder: Path, rows: list[dict[str, str]]) -> str:
    """The rows as JSONL."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sft(folder: Path, model: str, new: int) -> dict[str, Any]:
    """4 texts of 128 to 511 tokens, nearly all of them scored."""
    random_, tokenizer = random.Random(0), inspect_model(model).tokenizer
    frame = 32  # what the chat template adds to an empty conversation
    rows = [
        {"prompt": f"{index}", "completion": text(tokenizer, random_, random_.randint(128, 511) - frame)}
        for index in range(96)
    ]
    return {"data.source": rows_file(folder, rows), "data.batch_size": 4, "data.num_held_out": 1}


def dpo(folder: Path, model: str, new: int) -> dict[str, Any]:
    """8 pairs of 128 tokens of prompt and 2 x 128 of answers."""
    random_, tokenizer = random.Random(0), inspect_model(model).tokenizer
    rows = [
        {
            "prompt": text(tokenizer, random_, 128 - 30),
            "chosen": text(tokenizer, random_, new - 1),
            "rejected": text(tokenizer, random_, new - 1),
        }
        for _ in range(64)
    ]
    return {"data.source": rows_file(folder, rows), "data.batch_size": 8, "data.num_held_out": 1}


def grpo(folder: Path, model: str, new: int) -> dict[str, Any]:
    """8 prompts x 8 completions."""
    return {
        "task.source": "reasoning-gym:chain_sum",
        "task.options": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2, "size": 256},
        "task.num_held_out": 1,
        "task.reward": "burnish_side:score",
        "rollout.num_prompts": 8,
        "rollout.group_size": 8,
        "rollout.max_tokens": new,
    }


if __name__ == "__main__":
    main()

"""The plan of the memory against the measured peak: each configuration is planned, then trained for two steps.

    python scripts/memory_calibration.py [NAME ...]

Prints the table of docs/guides/memory.md: predicted and measured peak, and the difference. The measured one is the
largest resident size of the process that trained. Needs SmolLM2-135M (`burnish model get smollm2-135m`).
"""

import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from burnish.algorithms.memory_plan import plan_memory
from burnish.algorithms.session import algorithm_of, prepare, schema_for
from burnish.config.loading import resolve
from burnish.config.schema import ModelConfig
from burnish.models.load import find_dtype, find_model

WORDS = ["the", "river", "ran", "past", "an", "old", "mill", "where", "two", "men", "were", "mending", "a", "wheel"]
SFT = {"algorithm": "sft", "data.batch_size": 8, "data.num_held_out": 2}
DPO = {"algorithm": "dpo", "data.batch_size": 8, "data.num_held_out": 2}
GRPO = {
    "algorithm": "grpo",
    "task.source": "reasoning-gym:chain_sum",
    "task.options": {"min_terms": 4, "max_terms": 4, "min_digits": 2, "max_digits": 2, "size": 200},  # all alike long
    "task.num_held_out": 8,
    "rollout.max_tokens": 24,
    "loss.entropy_coefficient": 0.001,  # so that groups with equal rewards are learnt from too
}
LORA = {"model.lora": {"rank": 16}}
CASES: dict[str, dict[str, object]] = {
    "sft": SFT,
    "sft, micro-batches of 512": SFT | {"train.micro_batch_tokens": 512},
    "sft, 4,096": SFT | {"train.micro_batch_tokens": 4096},
    "sft, 4,096, every layer recomputed": SFT | {"train.micro_batch_tokens": 4096, "train.recompute": 1},
    "sft, every second layer recomputed": SFT | {"train.recompute": 2},
    "sft, bfloat16": SFT | {"model.compute_dtype": "bfloat16"},
    "sft, LoRA": SFT | LORA,
    "sft, memory returned": SFT | {"train.save_memory": ["return_memory"]},
    "sft, LoRA, memory returned": SFT | LORA | {"train.save_memory": ["return_memory"]},
    "sft, LoRA on 4 bits, recomputed": SFT | {"model.lora": {"base_bits": 4}, "train.recompute": 1},
    "sft, Adafactor, 512": SFT | {"optimizer.kind": "adafactor", "train.micro_batch_tokens": 512},
    "sft, AdamW in 8 bits, 512": SFT | {"optimizer.kind": "adamw_8bit", "train.micro_batch_tokens": 512},
    "dpo": DPO,
    "grpo": GRPO,
    "grpo, 128 tokens, 1,024": GRPO | {"rollout.max_tokens": 128, "train.micro_batch_tokens": 1024},
    "grpo with a reference": GRPO | {"loss.kl_coefficient": 0.1},
    "grpo, 16 completions, LoRA": GRPO | LORA | {"rollout.group_size": 16, "rollout.num_prompts": 4},
    "ppo with its own critic": GRPO | {"algorithm": "ppo"},
    "sft, Qwen2 of 8 x 1,024": SFT | {"model.path": "qwen2", "train.micro_batch_tokens": 1024},
}


def main() -> None:
    """Plan and measure each case, print a line for each."""
    names = sys.argv[1:] or list(CASES)
    print(f"{platform.platform()}, {find_dtype(ModelConfig(path='model'))} unless it is named\n")
    print("| configuration | predicted, GB | measured, GB | difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            recipe = write_recipe(Path(folder), CASES[name])
            predicted, measured = plan(recipe), measure(recipe)
            difference = f"{predicted / measured - 1:+.1%}"
            print(f"| {name} | {predicted / 1e9:.2f} | {measured / 1e9:.2f} | {difference} |", flush=True)


def plan(recipe: Path) -> int:
    """The predicted peak, in bytes."""
    config = resolve(schema_for(str(recipe)), str(recipe), environment={}).config
    return plan_memory(config, algorithm_of(config).needs(config), prepare(config).largest_step()).peak_bytes


def measure(recipe: Path) -> int:
    """The peak that the run's own metrics say, in bytes."""
    command = [sys.executable, "-m", "burnish", "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=recipe.parent, env=os.environ)
    found = re.search(r"run (\S+): step 0", done.stdout)
    if done.returncode != 0 or found is None:
        raise SystemExit(f"{recipe.read_text()}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    lines = (recipe.parent / found[1] / "metrics.jsonl").read_text().splitlines()
    return int(max(json.loads(line)["peak_memory_bytes"] for line in lines))


def write_recipe(folder: Path, settings: dict[str, object]) -> Path:
    """A recipe of two steps, with its data."""
    model = find_model("smollm2-135m")
    if settings.get("model.path") == "qwen2":
        model = str(make_qwen2(folder / "qwen2", model))
    common = {"name": "case", "train.num_steps": 2, "evaluation.every_steps": 100, "checkpoint.every_steps": 100}
    flat = common | dict(settings) | {"model.path": model}
    if "task.source" not in settings:
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in make_rows(pairs=settings["algorithm"] == "dpo")))
        flat["data.source"] = str(rows)
    tree: dict[str, object] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value  # type: ignore[index]
    recipe = folder / "case.yaml"
    recipe.write_text(json.dumps(tree))
    return recipe


def make_rows(*, pairs: bool) -> list[dict[str, str]]:
    """Answers of 300 words, one to a prompt or two, so that every step is the largest."""
    draw = random.Random(0)
    sides = ["chosen", "rejected"] if pairs else ["completion"]

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=300))

    return [{"prompt": f"{n} {words()}"[:200]} | {side: words() for side in sides} for n in range(32)]


def make_qwen2(folder: Path, tokenizer: str) -> Path:
    """A random model of another shape: wide, with biases and untied embeddings."""
    if not folder.exists():
        shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 49152}
        heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False}
        Qwen2ForCausalLM(Qwen2Config(**shape, **heads, max_position_embeddings=4096)).bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

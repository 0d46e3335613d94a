"""Tokens a second, MFU and peak memory of a learning step, for a random model of Qwen3-0.6B's shape.

    python scripts/gpu_throughput.py [--tokens 8192] [--branches 1] [--recompute 1] [--layers 28] [--steps 4]

prime-rl publishes for this shape on one H100: SFT at 8,192 tokens 26,005 tokens a second, RL at 16,384 tokens 11,896
with 12.5 GiB. `--branches 1` is a text to imitate; with more, a prompt of an eighth of the tokens has that many
completions, as in GRPO. MFU is the model's operations (6 a weight and token, and attention's) over the rate of a large
matrix product measured here.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from burnish.algorithms.profile import matmul_flops
from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.losses.loss import Loss
from burnish.losses.policy_gradient import PolicyLoss
from burnish.memory.measure import peak_memory_bytes
from burnish.memory.recompute import recompute
from burnish.models.load import load_policy
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Branch, Example
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 151936, "head_dim": 128}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40960}


def main() -> None:
    """Build, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"tokens": 8192, "branches": 1, "recompute": 1, "layers": 28, "steps": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Qwen3Config(**SHAPE, **HEADS, num_hidden_layers=arguments.layers, tie_word_embeddings=True)
        Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
        make_byte_tokenizer().save_pretrained(folder)
        policy = load_policy(ModelConfig(path=str(Path(folder))), seed=0)
    if arguments.recompute:
        recompute(policy.model, every=arguments.recompute)
    optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig())
    learner = Learner(policy, optimizer, micro_batch_tokens=arguments.tokens)
    prompt = 1 if arguments.branches == 1 else arguments.tokens // 8
    length = (arguments.tokens - prompt) // arguments.branches
    branches = tuple(Branch(token_ids=(7,) * length) for _ in range(arguments.branches))
    batch = pack([Example(id="1", prompt_ids=(5,) * prompt, branches=branches)])
    one_S = torch.ones(len(batch.target_ids_S))
    batch = replace(batch, advantages_S=one_S, sampler_logprobs_S=-one_S)
    loss: Loss = NegativeLogLikelihood() if arguments.branches == 1 else PolicyLoss()
    times = []
    for _ in range(arguments.steps + 1):
        began = time.perf_counter()
        learner.forward_backward(batch, loss)
        float(learner.optim_step(1e-6)["grad_norm"].value)  # waits for the device
        times.append(time.perf_counter() - began)
    seconds, num_tokens = statistics.median(times[1:]), len(batch.token_ids_T)
    weights = sum(parameter.numel() for parameter in policy.model.parameters())
    seen = prompt**2 / 2 + arguments.branches * (length * prompt + length**2 / 2)
    attention = 12 * arguments.layers * HEADS["num_attention_heads"] * SHAPE["head_dim"] * seen
    mfu = (6 * weights * num_tokens + attention) / seconds / matmul_flops(policy)
    print(
        f"{policy.device}: {num_tokens} tokens, {arguments.branches} branches: {num_tokens / seconds:.0f} tokens/s, "
        f"MFU {mfu:.1%}, peak {peak_memory_bytes() / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    main()

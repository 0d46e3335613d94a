"""Steps of a learner, alone or not: `sharded_steps.py MODEL OUT DTYPE ADAPTERS [RANK WORLD TENSOR COPIES PORT]`."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from burnish.config.schema import LoRAConfig, ModelConfig, OptimizerConfig
from burnish.data.packing import pack, split_batch
from burnish.distributed.sharding import make_sharding
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.models.load import load_policy
from burnish.records import Branch, Example, TokenBatch
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

NUM_STEPS = 3


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 200, (length,), generator=generator).tolist())

    return pack(
        [
            Example(id=str(n), prompt_ids=ids(5 + n), branches=tuple(Branch(token_ids=ids(7 + k)) for k in range(3)))
            for n in range(4)
        ]
    )


def main() -> None:
    model, out, dtype, adapters, *group = sys.argv[1:]
    torch.set_num_threads(1)
    rank, world, tensor, copies, port = map(int, group) if group else (0, 1, 1, 1, 0)
    lora = LoRAConfig(rank=2) if adapters == "lora" else None
    policy = load_policy(ModelConfig(path=model, compute_dtype="float32" if group else dtype, lora=lora), seed=0)
    complete = None
    if group:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        sharding = make_sharding(world, tensor, copies, torch.device("cpu"))
        policy = sharding.spread(policy, getattr(torch, dtype))
        complete = sharding.complete_gradients
    optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig(), complete_gradients=complete)
    learner = Learner(policy, optimizer, micro_batch_tokens=64)
    norms = []
    for _ in range(NUM_STEPS):
        parts = list(split_batch(batch(), 40))
        num_shares = world // tensor
        assert len(parts) % num_shares == 0
        for part in parts[rank // tensor :: num_shares]:
            learner.forward_backward(part, NegativeLogLikelihood())
        norms.append(float(learner.optim_step(1e-3)["grad_norm"].value))
    weights = {name: weight.contiguous() for name, weight in optimizer.weights()}
    if rank == 0:
        save_file(weights, out)
        Path(out).with_suffix(".json").write_text(json.dumps(norms))
    if group:
        dist.destroy_process_group()
        # gloo's threads may still let go of tensors, for which they take Python's lock: fatal while Python ends
        os._exit(0)


if __name__ == "__main__":
    main()

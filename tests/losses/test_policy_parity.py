"""The policy losses against the peer's own code, on the same random log-probabilities."""

import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from burnish.data.packing import pack_groups
from burnish.losses.policy_gradient import ImportanceCorrection, PolicyLoss
from burnish.records import Scored, TokenBatch

PARITY = Path(__file__).parent / "parity_policy.json"
MAX_TOKENS = 9
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}
CLIPPED = {"clip_low": 0.2, "clip_high": 0.28}

# name -> (ours, the peer's settings, source)
CASES = {
    "grpo": (
        {"aggregation": "sequence", **CLIPPED},
        {"loss_type": "grpo", **CLIP},
        "Shao et al. 2024, eq. 3",
    ),
    "grpo, KL in the loss": (
        {"aggregation": "sequence", "kl_coefficient": 0.3, **CLIPPED},
        {"loss_type": "grpo", "beta": 0.3, **CLIP},
        "Shao et al. 2024, eq. 3 and 4",
    ),
    "dapo": ({"aggregation": "token", **CLIPPED}, {"loss_type": "dapo", **CLIP}, "Yu et al. 2025, eq. 8"),
    "dr_grpo": (
        {"aggregation": "constant", **CLIPPED},
        {"loss_type": "dr_grpo", **CLIP},
        "Liu et al. 2025, eq. 3",
    ),
    "dual clip": (
        {"aggregation": "sequence", "dual_clip": 1.4, **CLIPPED},
        {"loss_type": "grpo", "delta": 1.4, **CLIP},
        "Ye et al. 2020, eq. 5",
    ),
    "gspo": (
        {"aggregation": "sequence", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.06},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
        "Zheng et al. 2025, eq. 5",
    ),
    "cispo": (
        {"aggregation": "token", "surrogate": "cispo", "clip_high": 0.1},
        {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.1},
        "MiniMax-M1, 2025, eq. 4",
    ),
    "sapo": (
        {"aggregation": "sequence", "surrogate": "sapo"},
        {"loss_type": "sapo", **CLIP},
        "Gao et al. 2025, eq. 6",
    ),
    "gmpo": (
        {"aggregation": "sequence", "surrogate": "gmpo", "clip_low": 0.2, "clip_high": 0.28},
        {"trainer": "gmpo", **CLIP},
        "Zhao et al. 2025, eq. 4",
    ),
    "entropy bonus": (
        {"aggregation": "token", "entropy_coefficient": 0.2, **CLIPPED},
        {"loss_type": "dapo", "entropy_coef": 0.2, **CLIP},
        "PPO, Schulman et al. 2017, eq. 9",
    ),
    "truncated importance correction": (
        {"aggregation": "token", "importance": ImportanceCorrection(high=1.05), **CLIPPED},
        {"loss_type": "dapo", "importance": 1.05, **CLIP},
        "Yao et al. 2025",
    ),
}


@pytest.fixture
def case(make_groups) -> tuple[Scored, TokenBatch]:
    batch = pack_groups(make_groups([[5, 3, 9], [2, 4, 7]]), [[1.0, -0.5, -0.5], [0.7, -1.4, 0.7]])
    generator = torch.Generator().manual_seed(3)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(len(batch.target_ids_S), generator=generator)

    old_S = -(normal(1.0).abs() + 0.2)
    said = Scored(logprobs_S=(old_S + normal(0.2)).requires_grad_(), entropy_S=(1 + normal(0.2).abs()).requires_grad_())
    return said, replace(
        batch,
        old_logprobs_S=old_S,
        sampler_logprobs_S=old_S + normal(0.1),
        reference_logprobs_S=old_S + normal(0.4),
    )


def padded(values_S: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    parts = values_S.split(torch.bincount(batch.sequence_S).tolist())
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def of_trl(said: Scored, batch: TokenBatch, settings: dict) -> tuple[float, list[torch.Tensor]]:
    """The peer's own `_compute_loss` on a stand-in whose model returns our log-probabilities."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is in the extra `dev`")
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

    mask = padded(torch.ones(len(batch.sequence_S)), batch)
    logprobs, entropies = padded(said.logprobs_S, batch), padded(said.entropy_S, batch)
    first_S = torch.cat([torch.tensor([True]), batch.sequence_S[1:] != batch.sequence_S[:-1]])
    correction = (batch.old_logprobs_S - batch.sampler_logprobs_S).exp().clamp(max=settings.get("importance", 1.0))
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": batch.advantages_S[first_S],
        "old_per_token_logps": padded(batch.old_logprobs_S, batch),
        "ref_per_token_logps": padded(batch.reference_logprobs_S, batch),
        "importance_sampling_ratio": padded(correction, batch),
        "num_items_in_batch": mask.sum(),
    }
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        beta=settings.get("beta", 0.0),
        loss_type=settings.get("loss_type", "grpo"),
        epsilon_low=settings["epsilon_low"],
        epsilon_high=settings["epsilon_high"],
        args=SimpleNamespace(
            use_bias_correction_kl=False,
            delta=settings.get("delta"),
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            steps_per_generation=1,
        ),
        use_vllm="importance" in settings,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_TOKENS,
        accelerator=accelerator,
        _entropy_bonus_enabled="entropy_coef" in settings,
        use_adaptive_entropy=False,
        entropy_coef=settings.get("entropy_coef", 0.0),
        _metrics={"train": defaultdict(list)},
    )
    trainer.accelerator.sync_gradients = True
    owner = GMPOTrainer if settings.get("trainer") == "gmpo" else grpo.GRPOTrainer
    loss = owner._compute_loss(trainer, None, inputs)
    return float(loss.detach()), gradients(loss, said)


def gradients(loss: torch.Tensor, said: Scored) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, [said.logprobs_S, said.entropy_S], allow_unused=True)
    return [torch.zeros_like(said.logprobs_S) if part is None else part for part in found]


@pytest.fixture(scope="module")
def parity():
    """Differences found in this run. PARITY=write keeps them; docs/losses.md is made of what is kept."""
    found: dict[str, dict[str, object]] = {}
    yield found
    if os.environ.get("PARITY") == "write":
        PARITY.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("name", CASES)
def test_against_trl(name: str, case, parity) -> None:
    ours, theirs, source = CASES[name]
    said, batch = case
    batch_for_ours = replace(batch, reference_logprobs_S=None) if "beta" not in theirs else batch
    loss = PolicyLoss(max_tokens=MAX_TOKENS, **ours)
    total = loss(said, batch_for_ours).total / getattr(batch.counts, loss.normalizer)
    mine = gradients(total, said)
    value, peer = of_trl(said, batch, theirs)
    found = {
        "value": abs(float(total.detach()) - value),
        "gradient": max(float((a - b).abs().max()) for a, b in zip(mine, peer, strict=True)),
    }
    parity[name] = {"source": source, "peer": f"TRL 1.16 {theirs.get('trainer', 'grpo')} {theirs.get('loss_type', '')}"}
    parity[name] |= found
    assert found["value"] < 1e-5 and found["gradient"] < 1e-5
    assert mine[0].abs().max() > 1e-3


def test_kept_differences_are_small() -> None:
    kept = json.loads(PARITY.read_text())
    assert set(CASES) == set(kept)
    assert all(each["value"] < 1e-5 and each["gradient"] < 1e-5 for each in kept.values())

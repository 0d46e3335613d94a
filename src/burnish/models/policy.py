"""The policy: one set of weights that the learner trains and the generator samples from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from burnish.models import attention
from burnish.models.attention import AttentionPlan
from burnish.models.head import Head, head_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A causal LM with its tokenizer.

    `module` owns the parameters (a peft model where LoRA is on), `model` is the transformers model inside it.
    `source` is the folder the weights came from. A reward model or critic is a sequence classification model with one
    output: it has a value head and no language head. `own_value_head` is one beside a causal LM, for a critic that
    shares the policy's trunk.
    """

    module: nn.Module
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer."""
    own_value_head: nn.Linear | None = None
    trunk: nn.Module | None = None
    """From tokens to hidden states, where the weights are spread over processes and must be gathered for it."""

    @property
    def is_adapted(self) -> bool:
        """Whether adapters are trained instead of the model's own weights."""
        return self.module is not self.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.get_input_embeddings().weight.device  # type: ignore[assignment]  # a module's attribute
        return device

    @property
    def has_language_head(self) -> bool:
        """Whether it is a causal LM."""
        return self.model.get_output_embeddings() is not None

    @property
    def value_head(self) -> nn.Module | None:
        """From hidden states to one value, where there is such a head; float32, as the differences are small."""
        head: nn.Module | None = self.own_value_head or getattr(self.model, "score", None)
        return head

    @property
    def head(self) -> Head:
        """From hidden states to logits."""
        return head_of(self.model)

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return context_length_of(self.model.config)

    def hidden_states(self, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
        """Last hidden states [T, H]."""
        if self.trunk is not None:
            hidden_TH: Tensor = self.trunk(token_ids_T, position_ids_T, plan)[0]
            return hidden_TH
        return attention.hidden_states(self.model.base_model, token_ids_T, position_ids_T, plan)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name; tied ones once."""
        found: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad
        }
        if self.own_value_head is not None:
            found["own_value_head.weight"] = cast(nn.Parameter, self.own_value_head.weight)
        return found


def context_length_of(config: PretrainedConfig) -> int:
    """Longest sequence, in tokens.

    LongRoPE (Phi-3's 128k models) turns *every* position otherwise as soon as one sequence of a batch is longer than
    the original context, so that context is the limit: within it, no sequence depends on its neighbours.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [each for each in ropes.values() if isinstance(each, dict)]
    limits = [
        int(rope["original_max_position_embeddings"])
        for rope in by_layer_type or [ropes]
        if rope.get("rope_type") == "longrope"
    ]
    return min([int(config.max_position_embeddings), *limits])

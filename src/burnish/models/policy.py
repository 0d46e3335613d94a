"""The policy: one set of weights that the learner trains and the generator samples from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from burnish.models import attention
from burnish.models.attention import AttentionPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    def head_VH(self) -> Tensor:
        """The output embedding."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.model.config.max_position_embeddings)

    def hidden_states(self, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
        """Last hidden states [T, H]."""
        return attention.hidden_states(self.model.base_model, token_ids_T, position_ids_T, plan)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name; tied ones once."""
        found: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad
        }
        if self.own_value_head is not None:
            found["own_value_head.weight"] = cast(nn.Parameter, self.own_value_head.weight)
        return found

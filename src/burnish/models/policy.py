"""The policy: one set of weights that the learner trains and the generator samples from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from burnish.models import attention
from burnish.models.attention import AttentionPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A causal LM with its tokenizer.

    `module` owns the parameters (a peft model where LoRA is on), `causal_lm` is the transformers model inside it.
    `source` is the folder the weights came from.
    """

    module: nn.Module
    causal_lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str

    @property
    def is_adapted(self) -> bool:
        """Whether adapters are trained instead of the model's own weights."""
        return self.module is not self.causal_lm

    @property
    def head_VH(self) -> Tensor:
        """The output embedding."""
        weight: Tensor = self.causal_lm.get_output_embeddings().weight
        return weight

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.causal_lm.config.max_position_embeddings)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's and the generation config's end of sequence."""
        configured = self.causal_lm.generation_config.eos_token_id if self.causal_lm.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}))

    def hidden_states(self, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
        """Last hidden states [T, H]."""
        return attention.hidden_states(self.causal_lm.get_decoder(), token_ids_T, position_ids_T, plan)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name; tied ones once."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

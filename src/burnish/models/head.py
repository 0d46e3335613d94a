"""From hidden states to logits: the output embedding, and what some families do after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap(scale * (hidden @ weight^T + bias)), where cap(x) = softcap * tanh(x / softcap).

    Most models have the matrix alone. Phi has a bias, Granite and Cohere a scale, Gemma 2 a cap.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether nothing follows the product."""
        return self.bias_V is None and self.scale == 1 and self.softcap is None

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """[C, V], float32."""
        return self.from_layer(F.linear(hidden_CH, self.weight_VH, self.bias_V))

    def from_layer(self, output_CV: Tensor) -> Tensor:
        """The logits [C, V], float32, from what the model's own output layer says: the product with the bias."""
        logits_CV = output_CV.float()
        if self.scale != 1:
            logits_CV = logits_CV * self.scale
        return logits_CV if self.softcap is None else (logits_CV / self.softcap).tanh() * self.softcap

    def product_gradient(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """From the gradient of the logits to that of hidden @ weight^T + bias; tanh' = 1 - tanh^2."""
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (logits_CV / self.softcap) ** 2)
        return grad_CV if self.scale == 1 else grad_CV * self.scale


def head_of(model: PreTrainedModel) -> Head:
    """The head of a causal LM, from its weights and its config."""
    layer, config = model.get_output_embeddings(), model.config
    return Head(
        layer.weight,
        layer.bias,
        scale=getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )

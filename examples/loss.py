"""A loss of your own: imitate, but do not become too sure. Try it, then train with it, in the folder of this file:

    burnish check loss loss:calm
    burnish train sft --data.source data/conversations.jsonl --data.num_held_out 8 --loss.own loss:calm

The likelihood of the tokens, less a little of their entropy (the confidence penalty of Pereyra et al. 2017): a model
that is fine-tuned on few rows stays open to other words. Such a function is the loss of sft, dpo and reward_model with
`--loss.own`, and stands beside that of grpo with `--loss.also`. What it sees: docs/guides/custom-losses.md.
"""

from torch import Tensor

from burnish import loss
from burnish.records import Scored, TokenBatch

PENALTY = 0.05


@loss(normalizer="scored_tokens")
def calm(scored: Scored, batch: TokenBatch) -> Tensor:
    """The sum over the micro-batch; burnish divides it by the scored tokens of the whole step."""
    return (-(scored.logprobs_S + PENALTY * scored.entropy_S) * batch.weights_S).sum()

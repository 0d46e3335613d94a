"""Whether the server computes what training computes: the log-probabilities of the same tokens, both ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.data.packing import pack
from burnish.errors import ModelError
from burnish.models.attention import SegmentAttention
from burnish.models.layout import packed_linears
from burnish.models.logprobs import scored_logprobs
from burnish.models.policy import Policy
from burnish.records import Branch, Example
from burnish.serving.cache import RowCache

_TEXT = "The server must say what the trainer said. One, two, three, four, five, six, seven; and so on."
_TOKENS, _PROMPT_TOKENS = 16, 10
# Mean difference of log-probabilities that rounding explains, by type; a wrong weight or mask is nats away.
_ALLOWED = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.15}


def served_mismatch(policy: Policy, *, max_rows: int) -> float:
    """Mean difference, in nats, of the log-probabilities of a text's tokens as our own sampler makes them, a prompt in
    pieces and then a token at a time, and as the learner makes them.

    Raises:
        ModelError: it is more than rounding explains.
    """
    tokens = parity_tokens(policy)
    with torch.no_grad(), packed_linears(policy.model, num_rows=max_rows):
        served_S = _served_logprobs(policy, tokens)
    return checked_mismatch(policy, served_S, learned_logprobs(policy))


def parity_tokens(policy: Policy) -> tuple[int, ...]:
    """The text: a prompt, and the tokens after it that are compared."""
    return tuple(policy.tokenizer(_TEXT)["input_ids"][:_TOKENS])


@torch.no_grad()
def learned_logprobs(policy: Policy) -> Tensor:
    """The log-probabilities [S] of the compared tokens, from all tokens at once, as the learner makes them."""
    tokens = parity_tokens(policy)
    branch = Branch(token_ids=tokens[_PROMPT_TOKENS:])
    batch = pack([Example(id="parity", prompt_ids=tokens[:_PROMPT_TOKENS], branches=(branch,))]).to(policy.device)
    hidden_TH = policy.hidden_states(batch.token_ids_T, batch.position_ids_T, SegmentAttention(batch.segments))
    learned_S, _ = scored_logprobs(hidden_TH[batch.predictor_S], policy.head, batch.target_ids_S)
    return learned_S.cpu()


def checked_mismatch(policy: Policy, served_S: Tensor, learned_S: Tensor) -> float:
    """Mean difference, in nats, of what is served of a text's last tokens and what the learner says of them.

    Raises:
        ModelError: it is more than rounding explains.
    """
    mismatch = float((learned_S - served_S[-len(learned_S) :]).abs().mean())
    allowed = _ALLOWED[policy.model.dtype]
    if not mismatch <= allowed:  # NaN too
        raise ModelError(
            f"{policy.source}: served log-probabilities differ from the learner's by {mismatch:.3g} nats in the mean; "
            f"rounding explains {allowed:g}"
        )
    return mismatch


def _served_logprobs(policy: Policy, tokens: Sequence[int]) -> Tensor:
    cache = RowCache(policy.device)
    row = cache.open(len(tokens))
    found = []
    pieces = [_PROMPT_TOKENS // 2, _PROMPT_TOKENS - _PROMPT_TOKENS // 2]
    for count in [*pieces, *[0] * (len(tokens) - _PROMPT_TOKENS - 1)]:  # 0 is a step that decodes
        cache.begin([], [(row, count)]) if count else cache.begin([row], [])
        places = torch.arange(row.length, row.length + max(1, count), device=policy.device)
        hidden_TH = policy.hidden_states(torch.tensor(tokens, device=policy.device)[places], places, cache)
        cache.end()
        if row.length >= _PROMPT_TOKENS:
            logits_RV = policy.head.from_layer(policy.model.get_output_embeddings()(hidden_TH[-1:]))
            found.append(logits_RV.float().log_softmax(1)[0, tokens[row.length]].cpu())
    return torch.stack(found)

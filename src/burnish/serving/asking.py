"""From a request to its answers in the making, the same for every door."""

from __future__ import annotations

from burnish.serving.answers import Answers, Asked
from burnish.serving.openai import ChatRequest, CompletionRequest
from burnish.serving.parts import Parts
from burnish.serving.service import Wish


async def ask_for(parts: Parts, body: ChatRequest | CompletionRequest, wish: Wish, *, owner: str) -> Answers:
    """Ask the weights that a request is for: a canary's, if one is being tried and it is its turn.

    Raises:
        RefusedError: the request is not taken.
    """
    service = parts.service
    service.check_number(body.num_prompts, wish)
    messages = body.said() if isinstance(body, ChatRequest) else None
    request = Asked(owner=owner, user=body.user, messages=messages, settings=body.settings())
    with service.lease(body.model, parts.deployments.arm_for(body.model, request.unit)) as weights:
        prompts = await service.tokenize(lambda: body.prompts(weights))
        answers = service.ask(weights, prompts, wish, request)
    parts.deployments.asked(answers, wish)
    return answers

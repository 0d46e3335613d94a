"""From a request to its answers in the making, the same for every door."""

from __future__ import annotations

from burnish.serving.answers import Answers, Asked
from burnish.serving.constraints import schema_constraint
from burnish.serving.openai import ChatRequest, CompletionRequest
from burnish.serving.parts import Parts
from burnish.serving.service import Wish


async def ask_for(
    parts: Parts, body: ChatRequest | CompletionRequest, wish: Wish, *, owner: str, traceparent: str | None = None
) -> Answers:
    """Ask the weights that a request is for: a canary's, if one is being tried and it is its turn. `traceparent` is the
    span that the request belongs to.

    Raises:
        RefusedError: the request is not taken.
    """
    service = parts.service
    service.check_number(body.num_prompts, wish)
    service.check_form(wish, len(body.offered) if isinstance(body, ChatRequest) else 0)
    messages = body.said() if isinstance(body, ChatRequest) else None
    request = Asked(owner=owner, user=body.user, messages=messages, settings=body.settings(), traceparent=traceparent)
    with service.lease(body.model, parts.deployments.arm_for(body.model, request.unit)) as weights:
        prompts = await service.tokenize(lambda: body.prompts(weights))
        constraint = None
        if (schema := wish.schema) is not None:
            constraint = await service.tokenize(lambda: schema_constraint(weights, schema, parameter="response_format"))
        answers = service.ask(weights, prompts, wish, request, constraint)
    parts.deployments.asked(answers, wish)
    return answers

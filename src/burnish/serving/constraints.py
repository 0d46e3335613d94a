"""Answers that must have a form: a JSON schema, held token by token while they are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import llguidance.hf
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from burnish.serving.asks import Weights
from burnish.serving.refusals import RefusedError

_SPACE = r"[ \n]{0,8}"  # between the parts of JSON: without a bound a small model goes on with it
ANY_OBJECT = json.dumps({"type": "object"})


class Constraint:
    """What an answer may go on with. One for each answer: it follows its tokens."""

    def __init__(self, matcher: LLMatcher, schema: str) -> None:
        self._matcher, self.schema = matcher, schema

    def copy(self) -> Constraint:
        """The same, at the same place."""
        return Constraint(self._matcher.deep_copy(), self.schema)

    def forbidden(self) -> Tensor:
        """Which tokens [V] may not come next."""
        return torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) == 0

    def take(self, token_id: int) -> None:
        """The next token.

        Raises:
            ValueError: it may not come next.
        """
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"token {token_id} breaks the form: {self._matcher.get_error()}")

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())


def schema_constraint(weights: Weights, schema: str, *, parameter: str) -> Constraint:
    """A constraint to JSON of a schema, for the tokens of these weights.

    Raises:
        RefusedError: the schema is none, or too much.
    """
    policy = weights.policy
    tokenizer = _tokenizer(policy.tokenizer, policy.head.weight_VH.shape[0], policy.stop_token_ids)
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _SPACE})
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if error := matcher.get_error():
        raise RefusedError("invalid", f"{parameter}: {error.splitlines()[0][:300]}", parameter=parameter)
    return Constraint(matcher, schema)


def call_schema(functions: Mapping[str, Mapping[str, Any]]) -> str:
    """The schema of a call of one of some functions, each with the schema of its arguments. Arguments that a schema
    does not name are left out, unless it asks for them: a small model would write them without end.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"additionalProperties": False, **arguments}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, arguments in functions.items()
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


@lru_cache(maxsize=8)  # a quarter of a second each
def _tokenizer(tokenizer: Any, vocabulary: int, stop_token_ids: tuple[int, ...]) -> LLTokenizer:
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(stop_token_ids))

"""The native generator: continuous batching over the learner's own weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from burnish.errors import DataError
from burnish.models.attention import AttentionPlan, SegmentAttention
from burnish.models.layout import packed_linears
from burnish.models.policy import Policy
from burnish.records import Completion, GenerationRequest, Segment
from burnish.reproducibility.seeds import uniforms
from burnish.rollout.generators.cache import LaneCache
from burnish.rollout.generators.sampling import draw
from burnish.rollout.generators.stopping import StopStrings

PREFILL_TOKENS = 2048  # tokens of prompts in one forward pass


@dataclass(slots=True)
class _Row:
    """A completion in the making."""

    request: GenerationRequest
    seed: int
    stop_strings: StopStrings | None = None
    token_ids: list[int] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    completion: Completion | None = None


class NativeGenerator:
    """Decodes up to `max_rows` completions at once; a finished request's place goes to the next one.

    A request is prefilled once, however many seeds it has. The noise of a token is a function of (seed, position), so
    a completion does not depend on its neighbours. What the batch can change is the last bit of a logit, because a
    matrix product of another height may add in another order; `draw` says when that moves a token, and
    scripts/batch_invariance.py counts how often. The same requests in the same call repeat exactly.

    With `take_over` the weights may change between two tokens: it is called before each, changes the weights if there
    are newer ones, and returns their version, which each token then carries. The keys and values of earlier tokens stay
    as the earlier weights computed them (as in PipelineRL, Piche et al. 2025, and AReaL, Fu et al. 2025): a token's
    log-probability is that of what it was drawn from, and of no one version.
    """

    def __init__(self, policy: Policy, *, max_rows: int, take_over: Callable[[], int] | None = None) -> None:
        self.policy = policy
        self.max_rows = max_rows
        self._take_over: Callable[[], int | None] = take_over or (lambda: None)
        self._version: int | None = None

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Generator.

        Raises:
            DataError: a prompt is empty, or it and its `max_tokens` exceed the model's context.
        """
        for request in requests:
            self._check(request)
        if not requests:
            return []
        rows = [[self._row(request, seed) for seed in request.seeds] for request in requests]
        width = max(len(request.seeds) for request in requests)
        num_lanes = min(len(requests), max(1, self.max_rows // width))
        cache = LaneCache(
            self.policy,
            num_lanes=num_lanes,
            width=width,
            max_prompt=max(len(request.token_ids) for request in requests),
            max_new=max(request.sampling.max_tokens for request in requests),
        )
        self._decode_all(cache, deque(rows), num_lanes, width)
        return [tuple(row.completion for row in group if row.completion is not None) for group in rows]

    def _row(self, request: GenerationRequest, seed: int) -> _Row:
        stops = request.sampling.stop
        return _Row(request, seed, StopStrings(self._text, stops) if stops else None)

    def _decode_all(self, cache: LaneCache, waiting: deque[list[_Row]], num_lanes: int, width: int) -> None:
        lanes: list[list[_Row]] = [[] for _ in range(num_lanes)]
        while _is_left(waiting, lanes):
            self._version = self._take_over()
            with packed_linears(self.policy.model, num_rows=num_lanes * width):  # of this version
                while _is_left(waiting, lanes) and self._take_over() == self._version:
                    self._admit(cache, waiting, lanes)
                    self._decode_step(cache, lanes)

    def _admit(self, cache: LaneCache, waiting: deque[list[_Row]], lanes: list[list[_Row]]) -> None:
        """Let those that wait begin in the lanes that are free."""
        free = [index for index, lane in enumerate(lanes) if not _unfinished(lane)]
        admitted = free[: len(waiting)]
        for index in admitted:
            lanes[index] = waiting.popleft()
        if admitted:
            self._prefill(cache, lanes, admitted)

    def _check(self, request: GenerationRequest) -> None:
        if not request.token_ids:
            raise DataError("a generation request has an empty prompt")
        total = len(request.token_ids) + request.sampling.max_tokens
        if total > self.policy.context_length:
            raise DataError(
                f"a prompt of {len(request.token_ids)} tokens and max_tokens={request.sampling.max_tokens} exceed the "
                f"model's context of {self.policy.context_length}"
            )

    def _prefill(self, cache: LaneCache, lanes: list[list[_Row]], admitted: list[int]) -> None:
        pending = deque(admitted)
        while pending:
            chunk = [pending.popleft()]
            size = len(lanes[chunk[0]][0].request.token_ids)
            while pending and size + len(lanes[pending[0]][0].request.token_ids) <= PREFILL_TOKENS:
                size += len(lanes[pending[0]][0].request.token_ids)
                chunk.append(pending.popleft())
            self._prefill_chunk(cache, lanes, chunk)

    def _prefill_chunk(self, cache: LaneCache, lanes: list[list[_Row]], chunk: list[int]) -> None:
        prompts = [lanes[index][0].request.token_ids for index in chunk]
        lengths = [len(prompt) for prompt in prompts]
        cache.open_lanes(chunk, lengths)

        def store(layer: int, key: Tensor, value: Tensor) -> None:
            cache.store_prompts(layer, chunk, lengths, key, value)

        plan = SegmentAttention([Segment(length, ()) for length in lengths], on_key_value=store)
        token_ids_T = torch.tensor([token for prompt in prompts for token in prompt])
        position_ids_T = torch.cat([torch.arange(length) for length in lengths])
        hidden_TH = self._hidden_states(token_ids_T, position_ids_T, plan)
        # Every completion of a request draws its first token from the same logits.
        last = torch.tensor(lengths).cumsum(0) - 1
        repeats = torch.tensor([len(lanes[index]) for index in chunk], device=hidden_TH.device)
        self._extend([row for index in chunk for row in lanes[index]], hidden_TH[last].repeat_interleave(repeats, 0))

    def _decode_step(self, cache: LaneCache, lanes: list[list[_Row]]) -> None:
        places = [
            (lane, member)
            for lane, lane_rows in enumerate(lanes)
            for member, row in enumerate(lane_rows)
            if row.completion is None
        ]
        if not places:
            return
        rows = [lanes[lane][member] for lane, member in places]
        cache.begin(places)
        token_ids_R = torch.tensor([row.token_ids[-1] for row in rows])
        position_ids_R = torch.tensor([len(row.request.token_ids) + len(row.token_ids) - 1 for row in rows])
        hidden_RH = self._hidden_states(token_ids_R, position_ids_R, cache)
        cache.end(places)
        self._extend(rows, hidden_RH)

    def _hidden_states(self, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
        device = self.policy.device
        return self.policy.hidden_states(token_ids_T.to(device), position_ids_T.to(device), plan)

    def _extend(self, rows: list[_Row], hidden_RH: Tensor) -> None:
        """Draw the next token of every row and finish those that end with it."""
        logits_RV = self.policy.head.from_layer(self.policy.model.get_output_embeddings()(hidden_RH))
        positions_R = np.array([len(row.token_ids) for row in rows], dtype=np.uint64)
        seeds_R = np.array([row.seed for row in rows], dtype=np.uint64)
        drawn = draw(
            logits_RV,
            [row.request.sampling for row in rows],
            lambda count: uniforms(seeds_R, positions_R, count),
        )
        columns = (drawn.ids_R.tolist(), drawn.sampling_logprobs_R.tolist(), drawn.model_logprobs_R.tolist())
        for row, token, sampling_logprob, model_logprob in zip(rows, *columns, strict=True):
            row.token_ids.append(token)
            row.sampling_logprobs.append(sampling_logprob)
            row.model_logprobs.append(model_logprob)
            if self._version is not None:
                row.versions.append(self._version)
            self._finish_if_done(row)

    def _finish_if_done(self, row: _Row) -> None:
        sampling = row.request.sampling
        is_stop_token = row.token_ids[-1] in sampling.stop_token_ids
        stop_at = row.stop_strings.position(row.token_ids) if row.stop_strings else None
        if not is_stop_token and stop_at is None and len(row.token_ids) < sampling.max_tokens:
            return
        row.completion = Completion(
            token_ids=tuple(row.token_ids),
            text=self._text(row.token_ids)[:stop_at],
            sampling_logprobs=tuple(row.sampling_logprobs),
            model_logprobs=tuple(row.model_logprobs),
            finish_reason="stop" if is_stop_token or stop_at is not None else "length",
            versions=tuple((version, len(list(run))) for version, run in groupby(row.versions)),
        )

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self.policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _unfinished(lane: list[_Row]) -> bool:
    return any(row.completion is None for row in lane)


def _is_left(waiting: deque[list[_Row]], lanes: list[list[_Row]]) -> bool:
    return bool(waiting) or any(_unfinished(lane) for lane in lanes)

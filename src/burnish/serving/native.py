"""Our own sampler: continuous batching over a cache with room for rows of any length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from burnish.config.serving import EngineConfig
from burnish.models.layout import packed_linears
from burnish.reproducibility.seeds import uniforms
from burnish.rollout.generators.sampling import draw
from burnish.serving.asks import Ask, Weights
from burnish.serving.cache import CacheRow, RowCache
from burnish.serving.echo import Echo, echo_of
from burnish.serving.parity import served_mismatch
from burnish.serving.prefixes import PrefixStore
from burnish.serving.sampler import Drawn, Made, MakeSampler, Row
from burnish.serving.shaping import shaped, tops_of


def native_samplers(options: EngineConfig) -> MakeSampler:
    """Samplers whose weights are compared with the learner first."""

    def make(weights: Weights, wake: Callable[[], None]) -> NativeSampler:
        mismatch = served_mismatch(weights.policy, max_rows=options.max_rows)
        return NativeSampler(weights, options, mismatch)

    return make


@dataclass(slots=True)
class _Place:
    """Where an answer stands: `read` tokens of its prompt are."""

    cache: CacheRow
    echo: Echo | None
    read: int = 0


class NativeSampler:
    """See Sampler.

    Each step feeds one token of every answer that is under way and `prefill_tokens` of prompts, so a long prompt does
    not stop the others. `prefix_bytes` of keys and values of prompts are kept for prompts that begin alike.
    """

    def __init__(self, weights: Weights, options: EngineConfig, mismatch: float = 0.0) -> None:
        self.mismatch = mismatch
        self.cache = RowCache(weights.policy.device)
        self._policy, self._prefill_tokens = weights.policy, options.prefill_tokens
        self._prefixes = PrefixStore(options.prefix_bytes)
        self._places: dict[Row, _Place] = {}
        self._held = ExitStack()
        self._held.enter_context(packed_linears(weights.policy.model, num_rows=options.max_rows))

    @property
    def is_ready(self) -> bool:
        """See Sampler."""
        return bool(self._places)

    @property
    def works_elsewhere(self) -> bool:
        """See Sampler."""
        return False

    def check(self, ask: Ask) -> None:
        """See Sampler: nothing is refused."""

    def check_alive(self) -> None:
        """See Sampler: it lives as long as the engine."""

    def begin(self, row: Row) -> None:
        """See Sampler."""
        self._places[row] = _Place(self.cache.open(len(row.ask.prompt_ids) + 1), echo_of(row.ask))

    def end(self, row: Row) -> None:
        """See Sampler."""
        if (place := self._places.pop(row, None)) is not None:
            self.cache.close(place.cache)

    def close(self) -> None:
        """See Sampler."""
        self._held.close()

    @torch.no_grad()
    def step(self) -> list[tuple[Row, Made]]:
        """See Sampler."""
        try:
            return self._step()
        except Exception:
            self.cache = RowCache(self._policy.device)  # the old one may be half changed
            raise

    def _step(self) -> list[tuple[Row, Made]]:
        decoding = {place.cache: row for row, place in self._places.items() if row.token_ids}
        pieces = self._pieces()
        if not decoding and not pieces:
            return []
        cache, places = self.cache, self._places
        order = cache.begin(list(decoding), [(places[row].cache, count) for row, count in pieces])
        rows = [decoding[place] for place in order]
        token_ids, positions = [row.token_ids[-1] for row in rows], [place.length for place in order]
        wanted = list(range(len(rows)))
        for row, count in pieces:
            place = places[row]
            token_ids += row.ask.prompt_ids[place.read : place.read + count]
            positions += range(place.read, place.read + count)
            place.read += count
            if place.read == len(row.ask.prompt_ids):
                wanted.append(len(token_ids) - 1)
                rows.append(row)
        policy = self._policy
        hidden_TH = policy.hidden_states(
            torch.tensor(token_ids, device=policy.device), torch.tensor(positions, device=policy.device), cache
        )
        cache.end()
        start = len(order)
        for row, count in pieces:
            if (echo := places[row].echo) is not None:
                echo.add(hidden_TH[start : start + count], policy.head)
            start += count
        made: list[tuple[Row, Made]] = []
        for row in rows[len(order) :]:
            self._remember(row)
            if (echo := places[row].echo) is not None:
                made.append((row, echo.told()))
        if rows:
            made += self._drawn(rows, policy.head.from_layer(policy.model.get_output_embeddings()(hidden_TH[wanted])))
        return made

    def _pieces(self) -> list[tuple[Row, int]]:
        """What of which prompts is read in this step. Of equal prompts the first is read, and the others begin with
        what it leaves.
        """
        left, found, reading = self._prefill_tokens, [], set[int]()
        for row, place in self._places.items():
            prompt = row.ask.prompt_ids
            if row.token_ids or left == 0:
                continue
            if place.read == 0:
                if place.echo is None and id(prompt) in reading:
                    continue
                if place.echo is None and (known := self._prefixes.find(row.ask.owner, prompt)):
                    self.cache.copy_in(place.cache, *known)
                    place.read = row.cached_tokens = known[1]
            reading.add(id(prompt))
            count = min(left, len(prompt) - place.read)
            left -= count
            found.append((row, count))
        return found

    def _remember(self, row: Row) -> None:
        prompt, owner = row.ask.prompt_ids, row.ask.owner
        if length := self._prefixes.wants(owner, prompt):
            self._prefixes.keep(owner, prompt[:length], self.cache.copy_out(self._places[row].cache, length))

    def _drawn(self, rows: list[Row], logits_RV: Tensor) -> list[tuple[Row, Made]]:
        """The next token of every row, or why there is none."""
        forbidden, failed = self._forbidden(rows)
        shaped_RV = shaped(logits_RV, rows, forbidden)
        seeds_R = np.array([row.ask.seed for row in rows], dtype=np.uint64)
        positions_R = np.array([len(row.token_ids) for row in rows], dtype=np.uint64)
        drawn = draw(shaped_RV, [row.ask.sampling for row in rows], lambda count: uniforms(seeds_R, positions_R, count))
        logprobs_R = drawn.model_logprobs_R
        if shaped_RV is not logits_RV:
            logprobs_R = logits_RV.log_softmax(1).gather(1, drawn.ids_R[:, None])[:, 0]
        tops = tops_of(logits_RV, rows)
        found = zip(rows, drawn.ids_R.tolist(), logprobs_R.tolist(), strict=True)
        return [
            (row, failed.get(index) or Drawn(token, logprob, tops.get(index, ())))
            for index, (row, token, logprob) in enumerate(found)
        ]

    def _forbidden(self, rows: list[Row]) -> tuple[dict[int, Tensor], dict[int, Exception]]:
        """(what the rows that have a form may not go on with, why the form of others cannot be followed)."""
        found, failed = dict[int, Tensor](), dict[int, Exception]()
        for index, row in enumerate(rows):
            if row.ask.constraint is not None:
                try:
                    found[index] = row.ask.constraint.forbidden()
                except Exception as error:  # this answer's fault alone
                    failed[index] = error
        return found, failed

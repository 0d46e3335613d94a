"""burnish's policy as a model of lm-eval, for its several hundred tasks.

from lm_eval import simple_evaluate
from burnish.evaluation.lm_eval import BurnishLM

simple_evaluate(model=BurnishLM("runs/quickstart-0a14fe"), tasks=[...], log_samples=True)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from burnish.config.extras import requires_extra
from burnish.config.schema import ModelConfig
from burnish.data.packing import pack
from burnish.errors import ConfigError
from burnish.evaluation.likelihood import TOKENS_AT_ONCE
from burnish.models.attention import SegmentAttention
from burnish.models.load import compute_repeatably, load_policy
from burnish.models.logprobs import CHUNK_ROWS
from burnish.models.policy import Policy
from burnish.records import Branch, Example, GenerationRequest, SamplingSettings
from burnish.reproducibility.seeds import seed_for
from burnish.rollout.generators.native import NativeGenerator

with requires_extra("lm-eval", "burnish.evaluation.lm_eval needs lm-eval"):
    from lm_eval.api.model import TemplateLM

_DEFAULT_MAX_TOKENS = 256


class BurnishLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """A model by its path, as `burnish eval` takes it; the policy's arithmetic is that of training.

    A context that is too long loses its beginning, as with lm-eval's own models.

    Raises:
        ModelError: there is no such model.
    """

    def __init__(self, path: str, *, config: ModelConfig | None = None, max_rows: int = 64, seed: int = 0) -> None:
        super().__init__()
        model = ModelConfig(path=path) if config is None else config
        compute_repeatably(model.num_threads)
        self.policy: Policy = load_policy(model, seed=0)
        self.tokenizer = self.policy.tokenizer
        self._generator = NativeGenerator(self.policy, max_rows=max_rows)
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, and stands before one that has nothing before it."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text: the tokenizer's first token where it has one."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.policy.context_length

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval names its cache of requests by."""
        return self.policy.source.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens are added where the tokenizer does so by itself, unless told otherwise."""
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer(string, **options)["input_ids"]
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model is asked with it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            kept = [*context, *continuation][-self.max_length :]
            start = max(1, len(kept) - len(continuation))  # something must stand before the first token
            pairs.append((kept[:start], kept[start:]))
        return self._logprobs(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows that do not overlap but for one token of context."""
        found = []
        for request in requests:
            (text,) = request.args
            ids = [self.prefix_token_id, *self.tok_encode(text, add_special_tokens=False)]
            size = self.max_length - 1
            starts = range(1, len(ids), size)
            windows = [(ids[start - 1 : start], ids[start : start + size]) for start in starts]
            found.append(sum(logprob for logprob, _ in self._logprobs(windows)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string; equal requests that are sampled get different seeds."""
        asked, seen = [], Counter[str]()
        for request in requests:
            context, given = request.args
            settings = _sampling(given, self.policy.stop_token_ids)
            room = self.max_length - settings.max_tokens
            if room < 1:
                raise ConfigError(f"max_gen_toks={settings.max_tokens} leaves no room in {self.max_length} tokens")
            ids = tuple((self.tok_encode(context) or [self.prefix_token_id])[-room:])
            seed = seed_for(self._seed, "lm-eval", context, seen[context])
            seen[context] += 1
            asked.append(GenerationRequest(token_ids=ids, sampling=settings, seeds=(seed,)))
        return [completion.text for (completion,) in self._generator.generate(asked)]

    @torch.no_grad()
    def _logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(summed log-probability, whether greedy decoding would say it) of each continuation after its context."""
        batches: list[list[Example]] = [[]]
        tokens = 0
        for context, continuation in pairs:
            size = len(context) + len(continuation)
            if batches[-1] and tokens + size > TOKENS_AT_ONCE:
                batches.append([])
                tokens = 0
            branch = Branch(token_ids=tuple(continuation))
            batches[-1].append(Example(id="", prompt_ids=tuple(context), branches=(branch,)))
            tokens += size
        return [each for batch in batches if batch for each in self._batch_logprobs(batch)]

    def _batch_logprobs(self, examples: Sequence[Example]) -> list[tuple[float, bool]]:
        batch = pack(examples).to(self.policy.device)
        plan = SegmentAttention(batch.segments)
        hidden_TH = self.policy.hidden_states(batch.token_ids_T, batch.position_ids_T, plan)
        sums_B = torch.zeros(len(examples), dtype=torch.float64)
        is_greedy_B = torch.ones(len(examples), dtype=torch.bool)
        parts = (part.split(CHUNK_ROWS) for part in (batch.predictor_S, batch.target_ids_S, batch.sequence_S))
        for predictor_C, target_ids_C, sequence_C in zip(*parts, strict=True):
            logits_CV = self.policy.head.logits(hidden_TH[predictor_C])
            logprobs_C = torch.log_softmax(logits_CV, dim=1).gather(1, target_ids_C[:, None])[:, 0]
            sums_B.index_add_(0, sequence_C.cpu(), logprobs_C.double().cpu())
            misses_C = (logits_CV.argmax(1) != target_ids_C).cpu()
            is_greedy_B[sequence_C.cpu()[misses_C]] = False
        return list(zip(sums_B.tolist(), is_greedy_B.tolist(), strict=True))


def _sampling(given: dict[str, Any], stop_token_ids: tuple[int, ...]) -> SamplingSettings:
    """lm-eval's generation settings as burnish's.

    Raises:
        ConfigError: one of them is not known here, and would be ignored.
    """
    left = dict(given)
    until = left.pop("until", None) or []
    stops = [until] if isinstance(until, str) else until
    max_tokens = next(
        (left.pop(key) for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in left), _DEFAULT_MAX_TOKENS
    )
    temperature = float(left.pop("temperature", 0.0))
    does_sample = left.pop("do_sample", temperature > 0)
    settings = SamplingSettings(
        max_tokens=int(max_tokens),
        temperature=temperature if does_sample else 0.0,
        top_k=int(left.pop("top_k", 0) or 0),
        top_p=float(left.pop("top_p", 1.0) or 1.0),
        min_p=float(left.pop("min_p", 0.0) or 0.0),
        stop=tuple(each for each in stops if each),
        stop_token_ids=stop_token_ids,
    )
    if left:
        raise ConfigError(f"lm-eval's generation_kwargs {', '.join(sorted(left))}: not known to burnish")
    return settings

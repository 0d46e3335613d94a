"""Conversations with an environment, all of a step side by side: a turn is sampled for all that are not over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

from burnish.data.chat import Chat, render_prompt
from burnish.environments.base import MakeEnvironment, StepResult, tools_of
from burnish.environments.calling import Caller, Fault, Held
from burnish.environments.tools import with_described_tools
from burnish.errors import DataError
from burnish.records import Completion, Ended, GenerationRequest, Message, Prompt, SamplingSettings, Task, Turn
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.scoring import Score, ScoreFailure
from burnish.rollout.play import Episode, Sample

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Conversation:
    """An episode under way. `heard` and `results` are its turns; the token ids are everything after the prompt."""

    prompt: Prompt
    seed: int
    held: Held
    retries_left: int
    began_with: Sequence[Message] = ()
    heard: list[Completion] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    text: str = ""
    observed: list[tuple[int, int]] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    failure: str | None = None
    ended: Ended | None = None

    @property
    def is_over(self) -> bool:
        return self.ended is not None or self.failure is not None

    def hear(self, completion: Completion) -> None:
        """Take over the sampled ids as they are."""
        self.heard.append(completion)
        self.token_ids += completion.token_ids
        self.sampling_logprobs += completion.sampling_logprobs
        self.model_logprobs += completion.model_logprobs
        self.versions += completion.versions
        self.text += completion.text

    def add(self, text: str, token_ids: Sequence[int]) -> None:
        """Add what the environment says."""
        start = len(self.token_ids)
        self.token_ids += token_ids
        self.sampling_logprobs += [0.0] * len(token_ids)
        self.model_logprobs += [0.0] * len(token_ids)
        if self.versions:  # those of what it answers
            self.versions.append((self.versions[-1][0], len(token_ids)))
        self.observed.append((start, len(self.token_ids)))
        self.text += text

    def episode(self) -> Episode:
        completion = Completion(
            token_ids=tuple(self.token_ids),
            text=self.text,
            sampling_logprobs=tuple(self.sampling_logprobs),
            model_logprobs=tuple(self.model_logprobs),
            finish_reason="length" if self.ended in ("length", "context") else "stop",
            versions=tuple(self.versions),
        )
        return Episode(
            completion=completion,
            score=total_score(self.results) if self.failure is None else ScoreFailure(self.failure),
            observed=tuple(self.observed),
            turns=tuple(
                Turn(text=said.text, reward=_value(result.reward), answer=result.messages)
                for said, result in zip(self.heard, self.results, strict=False)  # a fault leaves the last one out
            ),
            ended=self.ended or "done",
            retried=tuple(self.retried),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Plays every prompt with an environment of its own.

    What was sampled stays as it is (token in, token out); of the environment's messages only the tokens that they add
    are appended. A conversation ends when the environment says so, when a turn is cut off, after `max_turns`, or when
    the next turn would not fit into the context.

    A call that raises, or takes longer than `timeout_seconds`, is a fault. A new environment is then taken to the same
    point by what the model said so far, up to `max_retries` times in a conversation; if it answers otherwise than the
    first did, or the faults go on, the conversation has no score. So has one whose environment has taken
    `timeout_seconds` for every turn that there could be, new tries included.
    """

    make: MakeEnvironment
    chat: Chat
    timeout_seconds: float
    max_turns: int
    context_length: int
    max_retries: int = 1
    _beginnings: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    """By task: how the environment began when the prompt was made."""

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        everyone = [
            [_Conversation(prompt, seed, Held(self.make, self.total_seconds), self.max_retries) for seed in own]
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        flat = [conversation for group in everyone for conversation in group]
        with Caller(self.timeout_seconds) as caller:
            try:
                self._begin(caller, flat)
                requests = [
                    GenerationRequest(token_ids=prompt.token_ids, sampling=sampling, seeds=own)  # the prompt is shared
                    for prompt, own in zip(prompts, seeds, strict=True)
                ]
                self._take_turns(caller, flat, [each for group in sample(requests) for each in group], sampling)
                while talking := [each for each in flat if not each.is_over]:
                    said = sample([_next_turn(each, sampling) for each in talking])
                    self._take_turns(caller, talking, [completion for (completion,) in said], sampling)
            finally:
                caller.close([each.held for each in flat])
        return [[conversation.episode() for conversation in group] for group in everyone]

    @property
    def total_seconds(self) -> float:
        """What an environment may take altogether."""
        return self.timeout_seconds * (self.max_turns + 1)

    def first_prompt(self, task: Task, *, max_tokens: int) -> Prompt:
        """A task as its environment begins it; tools are described where the chat template does not show them.

        Raises:
            DataError: the environment cannot be reset, the template refuses its messages, or they do not fit.
        """
        held = Held(self.make, self.total_seconds)
        with Caller(self.timeout_seconds) as caller:
            (messages,) = caller.reset([held], [task])
            tools = None if held.environment is None else tools_of(held.environment)
            caller.close([held])
        if isinstance(messages, Fault):
            raise DataError(f"task.environment: cannot begin task {task.id}: {messages.reason}")
        self._beginnings[task.id] = messages
        if tools and "tools" not in str(self.chat.tokenizer.chat_template):
            messages, tools = with_described_tools(messages, tools), None
        begun = replace(task, messages=messages)
        limits = {"context_length": self.context_length, "max_tokens": max_tokens}
        return replace(render_prompt(self.chat, begun, tools=tools, **limits), task=task)

    def _begin(self, caller: Caller, conversations: Sequence[_Conversation]) -> None:
        tasks = [each.prompt.task for each in conversations]
        found = caller.reset([each.held for each in conversations], tasks)
        for conversation, result in zip(conversations, found, strict=True):
            messages = _mended(conversation, result, partial(_reset_again, caller, conversation))
            if isinstance(messages, Fault):
                continue
            conversation.began_with = messages
            if messages != self._beginnings.get(conversation.prompt.task.id, messages):
                conversation.failure = (
                    "the environment begins otherwise than before: reset must depend on the task alone"
                )

    def _take_turns(
        self,
        caller: Caller,
        conversations: Sequence[_Conversation],
        completions: Sequence[Completion],
        sampling: SamplingSettings,
    ) -> None:
        for conversation, completion in zip(conversations, completions, strict=True):
            conversation.hear(completion)
        heard = [each for each in conversations if not each.is_over]  # a reset may have failed
        found = caller.step([each.held for each in heard], [each.heard[-1] for each in heard])
        for conversation, result in zip(heard, found, strict=True):
            answer = _mended(conversation, result, partial(_step_again, caller, conversation))
            if not isinstance(answer, Fault):
                conversation.results.append(answer)
                self._answer(conversation, answer, sampling)

    def _answer(self, conversation: _Conversation, result: StepResult, sampling: SamplingSettings) -> None:
        """End the conversation, or add what the environment says."""
        said = conversation.heard[-1]
        if result.done:
            conversation.ended = "done"
        elif said.finish_reason == "length":
            conversation.ended = "length"
        elif len(conversation.heard) == self.max_turns:
            conversation.ended = "turns"
        else:
            try:
                text, token_ids = self.chat.added(said, [asdict(message) for message in result.messages])
            except DataError as error:
                conversation.failure = str(error)
                return
            used = len(conversation.prompt.token_ids) + len(conversation.token_ids) + len(token_ids)
            if used + sampling.max_tokens > self.context_length:
                conversation.ended = "context"
            else:
                conversation.add(text, token_ids)


def _mended(
    conversation: _Conversation, result: _Result | Fault, again: Callable[[], _Result | Fault]
) -> _Result | Fault:
    """The result, after as many new tries as there are left; or the Fault, which is then the conversation's."""
    while isinstance(result, Fault) and conversation.retries_left and conversation.held.seconds_left > 0:
        conversation.retries_left -= 1
        conversation.retried.append(result.reason)
        result = again()
    if isinstance(result, Fault):
        conversation.failure = result.reason
    return result


def _reset_again(caller: Caller, conversation: _Conversation) -> tuple[Message, ...] | Fault:
    return caller.reset([conversation.held], [conversation.prompt.task])[0]


def _step_again(caller: Caller, conversation: _Conversation) -> StepResult | Fault:
    """The last turn's answer from a new environment, once it has answered all earlier turns as the old one did."""
    found: object = _reset_again(caller, conversation)
    expected: object = conversation.began_with
    for index, said in enumerate(conversation.heard):
        if isinstance(found, Fault):
            return found
        if found != expected:
            return Fault("the environment failed, and a new one does not repeat what it had answered")
        result = caller.step([conversation.held], [said])[0]
        found, expected = result, conversation.results[index] if index < len(conversation.results) else None
    return result


def _next_turn(conversation: _Conversation, sampling: SamplingSettings) -> GenerationRequest:
    token_ids = (*conversation.prompt.token_ids, *conversation.token_ids)
    seed = seed_for(conversation.seed, "turn", len(conversation.heard))
    return GenerationRequest(token_ids=token_ids, sampling=sampling, seeds=(seed,))


def total_score(results: Sequence[StepResult]) -> Score:
    """The sum over the turns; named rewards by name, and what has no name beside them as `reward`."""
    has_names = any(isinstance(result.reward, Mapping) for result in results)
    totals: dict[str, float] = {}
    for result in results:
        if has_names and not result.reward:
            continue  # a plain 0 is no part of its own
        parts = result.reward if isinstance(result.reward, Mapping) else {"reward": result.reward}
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return Score(sum(totals.values()), totals if has_names else {})


def _value(reward: float | Mapping[str, float]) -> float:
    return float(sum(reward.values()) if isinstance(reward, Mapping) else reward)

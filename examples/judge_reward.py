"""A reward that asks a judge, another model behind an OpenAI-compatible endpoint. Say where it is, try it, train:

    export JUDGE_URL=http://127.0.0.1:8000/v1 JUDGE_MODEL=my-judge
    burnish check reward judge_reward:score data/questions.jsonl
    burnish train grpo --task.source data/questions.jsonl --task.num_held_out 8 --task.reward judge_reward:score

A reward may be a coroutine function: the completions of a step then wait for the judge together. What the judge said is
kept in `judge-cache`, so that a repeated or resumed run hears the same. The judge is asked about right answers alone,
which saves most of its work and leaves nothing to be gained by talking it round. `Judge` takes the name of a variable
that holds a key (`api_key_variable`), and compares with a reference in both orders (`against_reference`).
"""

import os

from burnish.records import Completion, Task
from burnish.rewards.answers import last_number
from burnish.rewards.judge import Judge

JUDGE = Judge(
    url=os.environ.get("JUDGE_URL", "http://127.0.0.1:8000/v1"),
    model=os.environ.get("JUDGE_MODEL", "judge"),
    rubric="Is this how a friendly person at the counter of a bicycle shop would say the price? Only the tone counts.",
    cache_folder="judge-cache",
    timeout_seconds=8.0,  # less than task.reward_timeout_seconds, 10, or the step gives up first
)


async def score(completion: Completion, task: Task) -> dict[str, float]:
    """1 for the right price, and up to a half for the tone of a right one."""
    if not last_number(completion, task):
        return {"right": 0.0, "tone": 0.0}
    return {"right": 1.0, "tone": 0.5 * await JUDGE.score(completion, task)}

"""A reward of your own, of several parts. Try it, then train on it, in the folder of this file:

    burnish check reward reward:score data/questions.jsonl
    burnish train grpo --task.source data/questions.jsonl --task.num_held_out 8 --task.reward reward:score

`score` gets what the model said and the question that it was asked. Each part is logged by its name, and their sum is
what is trained on. The parts beside the right answer are paid to right answers alone: what is paid to wrong ones, too,
is learnt first, because it is easier. More: docs/guides/custom-grpo.md.
"""

import re

from burnish.records import Completion, Task
from burnish.rewards.answers import last_number


def score(completion: Completion, task: Task) -> dict[str, float]:
    """1 for the right price, a tenth for few words, a fifth for a sentence that ends as one."""
    right = last_number(completion, task)
    num_words = len(completion.text.split())
    is_sentence = re.fullmatch(r"[A-Z].*\.", completion.text.strip(), re.DOTALL) is not None
    return {"right": right, "short": 0.1 * right * (num_words <= 20), "sentence": 0.2 * right * is_sentence}

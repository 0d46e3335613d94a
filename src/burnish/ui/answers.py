"""What the page is told: the types of the JSON under /api. All text and every number comes from files, as they are.

A `Number` is null where a file has none, or one that JSON cannot say.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Severity = Literal["info", "warning", "critical"]
BandKind = Literal["range", "t"]


def sayable(value: Any) -> Any:
    """Text without halves of characters, which UTF-8 has no bytes for."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def as_text(value: Any) -> Any:
    """What stands where text is expected, as text; nothing is no text."""
    return value if value is None else sayable(str(value))


def finite(value: Any) -> Any:
    """A number, or None for what JSON cannot say: no number at all, infinity, an integer beyond every float.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and not isinstance(value, int | float):
        raise ValueError("is no number")
    try:
        return value if value is None or math.isfinite(value) else None
    except OverflowError:
        return None


Text = Annotated[str, BeforeValidator(sayable)]
Shown = Annotated[str, BeforeValidator(as_text)]
Number = Annotated[float | None, BeforeValidator(finite)]


class Answer(BaseModel):
    """Read from a file, or told to the page."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ErrorAnswer(Answer):
    """Why there is none."""

    error: Text


class RunRow(Answer):
    """A line of the table of runs; of one that cannot be read, only its name and the reason."""

    name: Text
    status: Shown = "broken"
    algorithm: Text | None = None
    step: int = 0
    reward: Number = None
    held_out_before: Number = None
    held_out: Number = None
    created: Shown = ""
    reason: Text | None = None


class RunList(Answer):
    """Newest first."""

    folder: Text
    runs: list[RunRow]


class Setting(Answer):
    """One that is not as it is by default."""

    key: Text
    value: Shown


class RunDetail(Answer):
    """A run; `faults` say what of it cannot be read."""

    row: RunRow
    path: Text
    seed: Shown | None
    model: Text | None
    measure: Shown | None
    num_steps: int | None
    failure: Shown | None
    settings: list[Setting]
    metrics: list[Text]
    rollout_steps: list[int]
    evaluated_steps: list[int]
    faults: list[Text]


class Replicate(Answer):
    """A run that differs in its seed alone, or the run itself."""

    name: Text
    seed: Shown | None


class Curve(Answer):
    """A metric over the steps; `low` and `high` are null where there is no interval. `interval` says what they are."""

    metric: Text
    steps: list[int]
    values: list[Number]
    low: list[Number]
    high: list[Number]
    num_runs: list[int]
    interval: Text


class Curves(Answer):
    """Of a run, or the mean of runs that differ in their seed alone."""

    runs: list[Text]
    curves: list[Curve]


class Said(Answer):
    """One message of a prompt."""

    role: Text
    content: Shown


class Completion(Answer):
    """One of a group."""

    text: Text
    length_tokens: int
    truncated: bool
    reward: Number
    parts: dict[Text, Number]
    advantage: Number
    ended: Text | None


class GroupRow(Answer):
    """A group to choose; `number` is its place among those of the step."""

    number: int
    task_id: Shown
    question: Text
    num_completions: int
    reward_mean: Number
    reward_min: Number
    reward_max: Number


class Step(Answer):
    """The groups of one step."""

    step: int
    groups: list[GroupRow]


class Group(Answer):
    """The completions of one prompt, in the order in which they are stored."""

    step: int
    number: int
    task_id: Shown
    messages: list[Said]
    prompt: Text
    answer: Shown
    completions: list[Completion]


class EventLine(Answer):
    """Something that happened to a run."""

    time: Shown
    event: Shown
    severity: Severity
    step: int | None
    name: Shown | None
    state: Shown | None
    message: Text


class EventList(Answer):
    """The newest, newest first; `num_earlier` are left out."""

    events: list[EventLine]
    num_earlier: int


class FigureLine(Answer):
    """A figure with its interval at 95 %."""

    model_config = ConfigDict(from_attributes=True)
    measure: Text
    of: Text
    value: Number
    low: Number
    high: Number
    n: int
    method: Text


class StoreRow(Answer):
    """A line of the table of eval stores; `figure` is its mean over all items, once it is done."""

    name: Text
    label: Shown = ""
    source: Shown = ""
    status: Shown = "broken"
    created: Shown = ""
    num_items: int | None = None
    figure: FigureLine | None = None
    reason: Text | None = None


class StoreList(Answer):
    """Newest first."""

    folder: Text
    stores: list[StoreRow]


class StoreDetail(Answer):
    """A store that is done."""

    name: Text
    label: Text
    asked: Text
    figures: list[FigureLine]
    remarks: list[Text]


class ArmLine(Answer):
    """What one arm scores on the common items."""

    model_config = ConfigDict(from_attributes=True)
    label: Text
    mean: Number
    low: Number
    high: Number
    interval: Text


class Against(Answer):
    """B against A: the difference, and the verdict with what it would take to decide."""

    label_a: Text
    label_b: Text
    difference: Number
    low: Number
    high: Number
    p_value: Number
    test: Text
    verdict: list[Text]


class ComparisonAnswer(Answer):
    """Two stores on the items that both have."""

    num_items: int
    arms: list[ArmLine]
    claim: Against
    notes: list[Text]


class Served(Answer):
    """A model that the server answers with."""

    id: Text
    version: Shown | None = None
    fingerprint: Shown | None = None


class Sample(Answer):
    """A number of /metrics; of a histogram or summary how many it counted, with their mean."""

    name: Text
    kind: Text
    labels: dict[Text, Text]
    value: Number
    mean: Number = None
    help: Text = ""


class Serving(Answer):
    """What the server says of itself; each `..._reason` says why a part is missing."""

    url: Text | None
    answers: bool
    reason: Text | None = None
    ready: Text | None = None
    models: list[Served] = []
    models_reason: Text | None = None
    progress: dict[Text, Number] = {}
    progress_reason: Text | None = None
    metrics: list[Sample] = []
    metrics_reason: Text | None = None

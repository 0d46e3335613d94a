"""From a configuration to a finished run: check, load, train, report. The same way for a new and a resumed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from rich.console import Console

from burnish.algorithms import (
    distillation,
    dpo,
    grpo,
    kto,
    off_policy_distillation,
    online_dpo,
    ppo,
    rejection_sampling,
    reward_model,
    sft,
)
from burnish.algorithms.asking import AskingConfig
from burnish.algorithms.guarding import Guarding, RollBackError, check_guards
from burnish.algorithms.hooks import Hooks
from burnish.algorithms.memory_advice import changes_that_fit, free_bytes, settled
from burnish.algorithms.memory_plan import (
    LargestStep,
    certainly_below,
    check_one_micro_batch,
    plan_memory,
    probe,
    with_settings,
)
from burnish.algorithms.profile import COUNTED_STEP, Profile
from burnish.algorithms.run_record import changed_fingerprints, fingerprints, inexact, new_record, own_code
from burnish.config.loading import read_algorithm, to_yaml
from burnish.config.schema import RunConfig
from burnish.distributed.local import LocalRoles, build_local_roles, check_roles, prepare_process
from burnish.distributed.roles import Backend, CriticNeeds, RoleNeeds, Roles
from burnish.errors import BurnishError, LostError, NotFiniteError, UserError
from burnish.evaluation.held_out import Item, compare_items, mean_score, verdict
from burnish.memory.allocator import allocator
from burnish.models.load import ModelFacts, find_dtype
from burnish.monitoring.console import Progress, Waiting
from burnish.reproducibility.code_state import read_code
from burnish.reproducibility.files import require_free_space, write_text
from burnish.reproducibility.run_folder import RunFolder, utc_now
from burnish.training.checkpoint import TrainState, checkpoints, is_saved, step_of

_SLOW_DISK_BYTES_PER_SECOND = 100e6  # what a save is taken to reach while none was timed


class Inputs(Protocol):
    """What a run reads, checked before any weight is loaded."""

    @property
    def model(self) -> ModelFacts:
        """The model to train."""
        ...

    def record(self) -> dict[str, Any]:
        """Fingerprints of what is read beside model and configuration."""
        ...

    def summary(self) -> str:
        """What `--dry-run` says."""
        ...

    def largest_step(self) -> LargestStep:
        """The longest that a step can become, for a plan of the memory."""
        ...

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """Compute what needs the weights that the run starts from; a resumed run calls it before it restores them."""
        ...

    def evaluate(self, roles: Roles) -> list[Item]:
        """Score every held-out item."""
        ...


class Algorithm(Protocol):
    """What an algorithm's file offers."""

    MEASURE: str
    """What the held-out figure is."""
    COLUMNS: tuple[str, ...]
    """Metrics of the live table."""

    def prepare(self, config: Any) -> Inputs:
        """Check everything the run reads. Raises a UserError."""
        ...

    def needs(self, config: Any) -> RoleNeeds:
        """What the run asks of the roles."""
        ...

    def train(self, config: Any, inputs: Any, roles: Roles, hooks: Hooks, state: TrainState) -> None:
        """The loop: `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
        ...


_ALGORITHMS: Mapping[str, tuple[type[RunConfig], Algorithm]] = {
    "grpo": (grpo.GRPOConfig, cast(Algorithm, grpo)),
    "sft": (sft.SFTConfig, cast(Algorithm, sft)),
    "dpo": (dpo.DPOConfig, cast(Algorithm, dpo)),
    "kto": (kto.KTOConfig, cast(Algorithm, kto)),
    "reward_model": (reward_model.RewardModelConfig, cast(Algorithm, reward_model)),
    "ppo": (ppo.PPOConfig, cast(Algorithm, ppo)),
    "online_dpo": (online_dpo.OnlineDPOConfig, cast(Algorithm, online_dpo)),
    "rejection_sampling": (rejection_sampling.RejectionSamplingConfig, cast(Algorithm, rejection_sampling)),
    "distillation": (distillation.DistillationConfig, cast(Algorithm, distillation)),
    "off_policy_distillation": (
        off_policy_distillation.OffPolicyDistillationConfig,
        cast(Algorithm, off_policy_distillation),
    ),
}


def schema_of(algorithm: str) -> type[RunConfig]:
    """The configuration of an algorithm.

    Raises:
        UserError: there is no such algorithm.
    """
    if algorithm not in _ALGORITHMS:
        raise UserError(f"algorithm: {algorithm!r} is not known; give one of {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[algorithm][0]


def schema_for(recipe: str, flags: Sequence[str] = ()) -> type[RunConfig]:
    """The configuration of the algorithm that a recipe names."""
    return schema_of(read_algorithm(recipe, flags))


def prepare(config: RunConfig, *, device: torch.device | None = None) -> Inputs:
    """Check everything a run reads; see `check_roles` for the device.

    Raises:
        UserError: something cannot be used.
    """
    algorithm = algorithm_of(config)
    check_roles(config, algorithm.needs(config), device=device)
    inputs = algorithm.prepare(config)
    if config.cluster.kind != "local":
        from burnish.distributed.check_cluster import check_cluster  # `local` does without

        check_cluster(config, algorithm.needs(config), inputs.model, len(inputs.largest_step().examples))
    own_code(config)  # schedules too, which an algorithm imports when it begins
    check_guards(config)
    return inputs


def fitted(config: RunConfig, inputs: Inputs, budget_bytes: int) -> RunConfig:
    """The configuration with the settings found that are `auto`, if what it needs fits into the `budget_bytes` that
    this process may hold in all.

    The largest micro-batch is taken, then the fewest layers are recomputed, with which the plan fits.

    Raises:
        UserError: it does not fit; the message says what would.
    """
    config = with_settings(config, {"model.compute_dtype": find_dtype(config.model)})
    if config.cluster.kind != "local":  # each process has its own memory, of which this one knows nothing
        return config
    step, needs = inputs.largest_step(), algorithm_of(config).needs(config)
    check_one_micro_batch(config, step)
    is_settled = "auto" not in (config.train.micro_batch_tokens, config.train.recompute)
    is_alone = not needs.teachers and not isinstance(needs.critic, CriticNeeds)  # others may be of any size
    if is_settled and is_alone and certainly_below(config, inputs.model, step) < budget_bytes:
        return config

    def peak_of(tried: RunConfig) -> int:
        return plan_memory(tried, needs, step).peak_bytes

    tried, peak = settled(config, budget_bytes, peak_of, step)
    if peak <= budget_bytes:
        return tried
    found = changes_that_fit(tried, budget_bytes, peak_of, step)
    free = f"{budget_bytes / 1e9:.2f} GB"
    if found is None:
        raise UserError(f"this run needs about {peak / 1e9:.2f} GB and {free} are there; no setting makes it fit")
    changes, _ = found
    raise UserError(
        f"this run needs about {peak / 1e9:.2f} GB and {free} are there; it fits with "
        + " ".join(change.flags for change in changes)
    )


def train(
    config: RunConfig, console: Console, *, with_profile: bool = False, stop_after: int | None = None
) -> RunFolder:
    """Make a run folder and train in it. Returns the folder; its record says whether the run finished.

    With `stop_after` it ends after that step as Ctrl-C would end it.

    Raises:
        UserError: something cannot be used, or the run does not fit into the memory.
    """
    deadline = _deadline(config)
    if with_profile and config.cluster.kind != "local":
        raise UserError("--profile looks into one process: leave it out, or set cluster.kind to local")
    if with_profile and config.train.num_steps < COUNTED_STEP:
        raise UserError(f"--profile looks at the first {COUNTED_STEP} steps: set train.num_steps to at least that")
    _require_further(stop_after, 0, config.train.num_steps)
    with Waiting("checking what the run reads") as wait:
        asked, inputs = config, prepare(config)
        wait.doing("planning the memory")
        budget = free_bytes(asked)
        config = fitted(asked, inputs, budget)
        wait.doing("recording the code")
        code = read_code(config.runs_folder)
    with running_roles(config, config.runs_folder) as roles:
        if asked.train.micro_batch_tokens == "auto" and isinstance(roles, LocalRoles):
            tokens = probe(roles, algorithm_of(config).needs(config), inputs.largest_step(), budget)
            config = with_settings(config, {"train.micro_batch_tokens": tokens})
        inputs = replace(cast(Any, inputs), config=config)  # what was auto is part of the reference's fingerprint
        record = new_record(config, inputs, code, measure=algorithm_of(config).MEASURE)
        run = RunFolder.create(config.runs_folder, config.name)
        write_text(run.path / "config.yaml", to_yaml(config))
        code.write(run.path)
        run.write_record(record)
        with run.locked():
            start = _Start(event="started", deadline=deadline, stop_after=stop_after, with_profile=with_profile)
            _train(config, inputs, roles, run, console, start)
    return run


def resume(
    run: RunFolder,
    config: RunConfig,
    console: Console,
    *,
    stop_after: int | None = None,
    allow_changed: bool = False,
) -> RunFolder:
    """Go on from the newest checkpoint, or from the start where there is none yet.

    With `allow_changed` it goes on although what it reads has changed; the record then says so.

    Raises:
        UserError: the run is finished, or what it reads has changed since.
    """
    deadline = _deadline(config)
    with run.locked():
        record = run.whole_record()
        if record["status"] == "finished":
            raise UserError(f"run {run.path.name} is finished: `burnish show {run.path.name}` shows it")
        saved = checkpoints(run.checkpoints)
        _require_further(stop_after, step_of(saved[-1]) if saved else 0, config.train.num_steps)
        with Waiting("checking what the run reads"):
            inputs = prepare(config)
            now = fingerprints(config, inputs)
        changed = changed_fingerprints(record, now)
        if changed and not allow_changed:
            raise UserError(
                f"run {run.path.name} cannot be resumed: its {' and '.join(changed)} changed since it started; "
                "restore what changed, start a new run, or resume with --allow-changed, which its record will say"
            )
        differences = inexact(record, config)
        if differences:
            console.print(f"not bit-exact: {'; '.join(differences)}", markup=False, soft_wrap=True)
        if changed:
            console.print(f"from here on another run: its {' and '.join(changed)} changed", markup=False)
            run.update_record(changes=[*record.get("changes", ()), {"time": utc_now(), "changed": changed, "now": now}])
        run.update_record(status="running")
        event = "resumed_changed" if changed else "resumed_not_exact" if differences else "resumed"
        start = _Start(
            event=event, deadline=deadline, stop_after=stop_after, details={"changed": changed + differences}
        )
        with running_roles(config, run.path) as roles:
            _train(config, inputs, roles, run, console, start)
    return run


def report(run: RunFolder) -> str:
    """The run's last line, computed from its files."""
    first, last = (
        run.read_step("evaluations", step) for step in (run.steps("evaluations")[0], run.steps("evaluations")[-1])
    )
    lines = run.metrics()
    seconds = sum(line["seconds"] for line in lines)
    peak = max(line["peak_memory_bytes"] for line in lines)
    result = verdict(run.record()["measure"], compare_items(first, last))
    of = " of a learner" if "idle_learners" in lines[-1] else ""
    return f"{result}; {len(lines)} steps took {seconds:.0f} s, peak memory{of} {peak / 1e9:.2f} GB"


def algorithm_of(config: RunConfig) -> Algorithm:
    """What a configuration's algorithm offers."""
    return next(algorithm for schema, algorithm in _ALGORITHMS.values() if isinstance(config, schema))


def lag_of(config: RunConfig) -> int:
    """Steps that are sampled ahead."""
    return config.rollout.lag if isinstance(config, AskingConfig) else 0


def _deadline(config: RunConfig) -> float | None:
    """By time.monotonic(), if the time of the run, from now, is limited."""
    limit = config.train.save_before_deadline
    return None if limit is None else time.monotonic() + limit


def load_roles(config: RunConfig) -> LocalRoles:
    """Load the weights that a run starts from, in this process."""
    prepare_process(config)
    with Waiting("loading the model"), allocator.long_lived():
        return build_local_roles(config, algorithm_of(config).needs(config))


@contextmanager
def running_roles(config: RunConfig, folder: Path) -> Iterator[Backend]:
    """The roles of a run, where its configuration says; what they started ends with the context. Processes elsewhere
    must share `folder`, where the run's files are.
    """
    if config.cluster.kind == "local":
        yield load_roles(config)
        return
    from burnish.distributed.ray_roles import ray_roles  # `local` does without Ray

    prepare_process(config)  # a reward that is a model computes here
    with ExitStack() as stack:
        with Waiting("starting the processes of the cluster"):
            roles = stack.enter_context(ray_roles(config, algorithm_of(config).needs(config), folder))
        yield roles


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """How a run begins, and when it must stop."""

    event: str
    details: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    stop_after: int | None = None
    with_profile: bool = False


def _train(config: RunConfig, inputs: Inputs, roles: Backend, run: RunFolder, console: Console, start: _Start) -> None:
    algorithm, num_steps = algorithm_of(config), config.train.num_steps
    progress = Progress(console, num_steps=num_steps, columns=algorithm.COLUMNS)

    def notice(text: str) -> None:
        progress.say(text)
        run.add_event("noticed", message=text)

    roles.notice = notice
    save_bytes = roles.checkpoint_bytes()
    require_free_space(run.checkpoints, save_bytes, "a checkpoint")  # better now than at the end
    inputs.start(roles, progress.say)
    recorded = len(run.metrics())
    state = _restored(run, roles)
    run.add_event(start.event, step=state.step, **start.details)
    lag = lag_of(config)
    guarding = Guarding(config, run, progress.say, lag=lag)

    def evaluate(step: int) -> float:
        items = inputs.evaluate(roles)
        run.write_step("evaluations", step, items)
        return mean_score(items)

    def save(state: TrainState) -> None:
        if is_saved(run.checkpoints, state.step):  # the last step may be an interval's end too
            return
        path = roles.save(run.checkpoints, state, keep_last=guarding.keep_last())
        run.add_event("saved", step=state.step, checkpoint=path.name)

    hooks = Hooks(
        run=run,
        progress=progress,
        num_steps=num_steps,
        checkpoint=config.checkpoint,
        evaluate_every=config.evaluation.every_steps,
        evaluate=evaluate,
        save=save,
        profile=Profile(cast(LocalRoles, roles)) if start.with_profile else None,
        observe_roles=roles.observed,
        deadline=start.deadline,
        stop_after=start.stop_after,
        first_save_seconds=save_bytes / _SLOW_DISK_BYTES_PER_SECOND,
        lag=lag,
        guarding=guarding,
        around=max((line.get("seconds_evaluate", 0.0) for line in run.metrics()), default=0.0),
    )
    progress.say(f"run {run.path}: step {state.step} of {num_steps}")
    if recorded > state.step:
        progress.say(f"steps {state.step + 1} to {recorded} were not saved yet and are repeated")
    with _failure_recorded(run), _stop_on_signal(hooks), guarding.watching():
        state = _trained(algorithm, config, inputs, roles, hooks, state)
        _conclude(run, state, num_steps, progress)
        guarding.linger(lambda: hooks.should_stop)


def _trained(
    algorithm: Algorithm, config: RunConfig, inputs: Inputs, roles: Backend, hooks: Hooks, state: TrainState
) -> TrainState:
    """Evaluate and train; where a process is lost, start it anew and go on from the last checkpoint, bit by bit the
    same; where a guard says so, from one before, with a lower learning rate.
    """
    lost: LostError | RollBackError | None = None
    guarding = cast(Guarding, hooks.guarding)
    while True:
        try:
            if lost is not None:
                if isinstance(lost, LostError) or not isinstance(roles, LocalRoles):
                    roles.restart()  # of a rollback, too: what is sampled ahead is of weights that are gone
                state = _restored(hooks.run, roles)
                guarding.forget()
                hooks.run.add_event("healed", step=state.step)
                hooks.progress.say(f"going on after step {state.step}")
            if 0 not in hooks.run.steps("evaluations"):
                hooks.progress.say("looking at the held-out items before training")
                began = time.monotonic()
                with Waiting("looking at the held-out items"):
                    figure = hooks.evaluate(0)
                hooks.progress.say(f"held-out {algorithm.MEASURE} before training: {figure:.3f}")
                hooks.around = time.monotonic() - began
            with hooks.progress.running():
                algorithm.train(guarding.lowered(config), inputs, roles, hooks, state)
            if state.step < hooks.num_steps:
                hooks.settle()
                hooks.save(state)  # the signal may have come after the step's own turn to save
            return state
        except LostError as error:
            lost = error
            hooks.progress.say(f"{error}; starting anew")
            hooks.run.add_event("lost", step=state.step, reason=str(error))
        except NotFiniteError as error:
            lost = guarding.not_finite(error, state.step, lambda: hooks.should_stop)
            guarding.roll_back(lost.alert)
        except RollBackError as error:
            lost = error
            guarding.roll_back(error.alert)


def _restored(run: RunFolder, roles: Backend) -> TrainState:
    """Where the newest checkpoint was saved, or the beginning; what was recorded later is dropped."""
    saved = checkpoints(run.checkpoints)
    state = roles.load(saved[-1]) if saved else TrainState()
    run.rewind(state.step)
    return state


def _require_further(stop_after: int | None, step: int, num_steps: int) -> None:
    if stop_after is not None and not step < stop_after <= num_steps:
        raise UserError(f"--stop-after {stop_after}: the run is at step {step} of {num_steps}")


def _conclude(run: RunFolder, state: TrainState, num_steps: int, progress: Progress) -> None:
    if state.step < num_steps:
        run.add_event("interrupted", step=state.step)
        run.seal(status="interrupted")
        progress.say(f"stopped after step {state.step}; go on with: burnish resume {run.path}")
    else:
        run.seal(status="finished", finished=utc_now())
        progress.say(f"trained model: {checkpoints(run.checkpoints)[-1]}")
        progress.say(report(run))


@contextmanager
def _failure_recorded(run: RunFolder) -> Iterator[None]:
    """Let the run folder say why a run ended, then let the error go on."""
    try:
        yield
    except BurnishError as error:
        with suppress(BurnishError):  # a disk that is full is full for this note too
            run.add_event("failed", reason=str(error))
            run.seal(status="failed", failure=str(error))
        raise


@contextmanager
def _stop_on_signal(hooks: Hooks) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the step finish and saves; a second one ends the process at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if hooks.should_stop:
            os.write(2, b"burnish: ended at once; `burnish resume last` goes on from the last checkpoint\n")
            os._exit(128 + signum)
        hooks.progress.say("finishing the step, then saving; once more ends at once")
        hooks.should_stop = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Every metric that burnish shows Prometheus, in one place: the code, the page of the documentation and the tests are
made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS = (1.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A metric. A counter's name ends with _total, as Prometheus wants it. The values of every label are few: names of
    models, arms and kinds, never of users or requests. `alias` is vLLM's name for the same thing.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    alias: str | None = None


def _gauge(name: str, unit: str, meaning: str, *labels: str, alias: str | None = None) -> Spec:
    return Spec(name=name, kind="gauge", unit=unit, meaning=meaning, labels=labels, alias=alias)


def _counter(name: str, unit: str, meaning: str, *labels: str, alias: str | None = None) -> Spec:
    return Spec(name=name, kind="counter", unit=unit, meaning=meaning, labels=labels, alias=alias)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str, alias: str | None = None) -> Spec:
    unit = "tokens" if buckets is _TOKENS else "seconds"
    return Spec(name=name, kind="histogram", unit=unit, meaning=meaning, labels=labels, buckets=buckets, alias=alias)


# What a line of metrics.jsonl has: unit, meaning. Shown as burnish_train_<name>, with the label `run`.
STEP_METRICS: dict[str, tuple[str, str]] = {
    "step": ("steps", "Steps that are done."),
    "loss": ("", "The loss of the step."),
    "reward_mean": ("", "Mean reward of the step's rollouts."),
    "reward_std": ("", "Spread of the step's rewards."),
    "held_out": ("", "The held-out figure, from the newest evaluation."),
    "groups_without_signal": ("share", "Groups whose rewards are all equal."),
    "reward_failures": ("rollouts", "Rollouts whose reward could not be computed."),
    "environment_retries": ("rollouts", "Rollouts that were repeated because the environment failed."),
    "prompts_asked": ("prompts", "Prompts that were asked to fill the step."),
    "completions_asked": ("completions", "Completions that were asked for."),
    "turns_mean": ("turns", "Mean turns of a conversation."),
    "observed_tokens_mean": ("tokens", "Mean tokens that an environment said."),
    "turns_used_up_share": ("share", "Conversations that ended because their turns were used up."),
    "context_used_up_share": ("share", "Conversations that ended because the context was full."),
    "kept": ("rollouts", "Rollouts that rejection sampling kept."),
    "pairs": ("pairs", "Pairs that were made of the step's rollouts."),
    "entropy": ("nats", "Mean entropy of the policy at scored tokens."),
    "nll": ("nats", "Mean negative log-probability of scored tokens."),
    "kl": ("nats", "Mean KL to the reference at scored tokens."),
    "kl_per_completion": ("nats", "Mean over completions of the summed log-ratio to the reference."),
    "kl_baseline": ("nats", "KTO's estimate of the KL."),
    "divergence": ("nats", "Divergence from the teacher."),
    "clip_fraction": ("share", "Scored tokens whose ratio was clipped."),
    "ratio_max": ("", "Largest ratio of new to old probability."),
    "importance_mean": ("", "Mean importance correction."),
    "importance_outside": ("share", "Tokens whose importance correction was truncated or masked."),
    "mismatch_mean": ("nats", "Mean difference of learner's and sampler's log-probabilities."),
    "mismatch_max": ("nats", "Largest difference of learner's and sampler's log-probabilities."),
    "mismatch_kl": ("nats", "KL between sampler and learner."),
    "staleness_mean": ("versions", "Mean staleness of sampled tokens."),
    "staleness_max": ("versions", "Largest staleness of a sampled token."),
    "reward_chosen": ("", "Mean reward of chosen branches."),
    "reward_rejected": ("", "Mean reward of rejected branches."),
    "reward_margin": ("", "Mean margin of a pair."),
    "reward_accuracy": ("share", "Pairs whose chosen branch has the higher reward."),
    "drift_chosen": ("nats", "Log-ratio to the reference of chosen branches."),
    "drift_rejected": ("nats", "Log-ratio to the reference of rejected branches."),
    "value_error": ("", "Mean squared error of the critic."),
    "value_mean": ("", "Mean value that the critic expects."),
    "value_clip_fraction": ("share", "Values whose change was clipped."),
    "explained_variance": ("share", "Of the returns' variance, what the critic explains."),
    "grad_norm": ("", "Norm of the gradient before clipping."),
    "learning_rate": ("", "Learning rate of the step."),
    "tokens": ("tokens", "Tokens of the step."),
    "scored_tokens": ("tokens", "Tokens that the loss looked at."),
    "completion_tokens_mean": ("tokens", "Mean length of a completion."),
    "truncated_share": ("share", "Completions that were cut off at the longest allowed length."),
    "tokens_per_second": ("tokens/second", "Tokens of the step by its time."),
    "seconds": ("seconds", "Time of the step."),
    "seconds_sample": ("seconds", "Of that, until the samples were there."),
    "seconds_learn": ("seconds", "Of that, learning."),
    "seconds_evaluate": ("seconds", "Time of the newest evaluation."),
    "seconds_publish": ("seconds", "Time to bring new weights to the generators."),
    "bytes_published": ("bytes", "Bytes of new weights that were sent to the generators."),
    "peak_memory_bytes": ("bytes", "Peak memory of the process, or of the largest learner."),
    "idle_learners": ("share", "Time in which learners waited."),
    "idle_generators": ("share", "Time in which generators waited."),
    "restarts": ("processes", "Processes that were lost and started anew."),
    "out_of_memory": ("micro-batches", "Micro-batches that did not fit and were halved."),
}

TRAINING: tuple[Spec, ...] = (
    _gauge("burnish_train_info", "", "1, with the run, its algorithm and its model.", "run", "algorithm", "model"),
    _gauge("burnish_train_steps_planned", "steps", "Steps that the run will have.", "run"),
    _gauge("burnish_train_step_timestamp_seconds", "seconds", "When the newest step ended, since 1970.", "run"),
    _gauge("burnish_train_step_allowed_seconds", "seconds", "Time after which a step is missed.", "run"),
    _gauge("burnish_train_condition", "", "1 while a condition of the guards holds, else 0.", "run", "condition"),
    _gauge(
        "burnish_train_own",
        "",
        "A metric of your own loss, a part of one (loss.NAME), the critic's (critic.NAME), a multiplier.",
        "run",
        "name",
    ),
    *(_gauge(f"burnish_train_{name}", unit, meaning, "run") for name, (unit, meaning) in STEP_METRICS.items()),
)

SERVING: tuple[Spec, ...] = (
    _gauge("burnish_serve_info", "", "1, with the version of burnish.", "version"),
    _gauge("burnish_serve_ready", "", "1 while the server takes requests, else 0."),
    _counter("burnish_serve_http_requests_total", "requests", "Requests by route and status.", "route", "status"),
    _counter(
        "burnish_serve_answers_total",
        "answers",
        "Answers that are over: stop, length, tool_calls, cancelled, late or failed.",
        "model",
        "arm",
        "reason",
        alias="vllm:request_success_total",
    ),
    _counter(
        "burnish_serve_refused_total",
        "requests",
        "Requests that were refused: invalid, not_found, too_many or busy.",
        "reason",
        alias="vllm:admission_rejections_total",
    ),
    _counter(
        "burnish_serve_prompt_tokens_total", "tokens", "Tokens read.", "model", "arm", alias="vllm:prompt_tokens_total"
    ),
    _counter(
        "burnish_serve_answer_tokens_total",
        "tokens",
        "Tokens written.",
        "model",
        "arm",
        alias="vllm:generation_tokens_total",
    ),
    _counter(
        "burnish_serve_cached_tokens_total",
        "tokens",
        "Tokens of prompts that were known before.",
        "model",
        "arm",
        alias="vllm:prefix_cache_hits_total",
    ),
    _counter(
        "burnish_serve_looked_up_tokens_total",
        "tokens",
        "Tokens of prompts that were looked for among the known.",
        "model",
        "arm",
        alias="vllm:prefix_cache_queries_total",
    ),
    _gauge("burnish_serve_running", "answers", "Answers in the making.", alias="vllm:num_requests_running"),
    _gauge("burnish_serve_waiting", "answers", "Answers that wait.", alias="vllm:num_requests_waiting"),
    _gauge(
        "burnish_serve_cache_share",
        "share",
        "Tokens that answers in the making may have, of engine.cache_tokens.",
        alias="vllm:kv_cache_usage_perc",
    ),
    _counter("burnish_serve_steps_total", "steps", "Steps of the engine."),
    _gauge("burnish_serve_step_age_seconds", "seconds", "Time since the engine's newest step, or look for work."),
    _histogram(
        "burnish_serve_first_token_seconds",
        "Time to the first token.",
        _SECONDS,
        "model",
        "arm",
        alias="vllm:time_to_first_token_seconds",
    ),
    _histogram(
        "burnish_serve_token_seconds",
        "Mean time of an answer's tokens after its first.",
        _TOKEN_SECONDS,
        "model",
        "arm",
        alias="vllm:request_time_per_output_token_seconds",
    ),
    _histogram(
        "burnish_serve_gap_seconds",
        "Time between two tokens of an answer.",
        _TOKEN_SECONDS,
        "model",
        "arm",
        alias="vllm:inter_token_latency_seconds",
    ),
    _histogram(
        "burnish_serve_answer_seconds",
        "Time of a whole answer.",
        _SECONDS,
        "model",
        "arm",
        alias="vllm:e2e_request_latency_seconds",
    ),
    _histogram(
        "burnish_serve_queue_seconds",
        "Time that an answer waited for its turn.",
        _SECONDS,
        "model",
        "arm",
        alias="vllm:request_queue_time_seconds",
    ),
    _histogram(
        "burnish_serve_prefill_seconds",
        "Time to read a prompt, from its turn to the first token.",
        _SECONDS,
        "model",
        "arm",
        alias="vllm:request_prefill_time_seconds",
    ),
    _histogram(
        "burnish_serve_decode_seconds",
        "Time from an answer's first token to its last.",
        _SECONDS,
        "model",
        "arm",
        alias="vllm:request_decode_time_seconds",
    ),
    _histogram("burnish_serve_answer_length", "Tokens of an answer.", _TOKENS, "model", "arm"),
    _histogram(
        "burnish_serve_max_tokens",
        "Tokens that an answer was allowed.",
        _TOKENS,
        "model",
        "arm",
        alias="vllm:request_params_max_tokens",
    ),
    _gauge("burnish_serve_weight_version", "versions", "Version of the weights that answer.", "model", "arm"),
    _gauge("burnish_serve_sets_of_weights", "sets", "Sets of weights in memory, those that only finish included."),
    _gauge("burnish_serve_swaps_in_flight", "swaps", "Sets of weights that are being loaded."),
    _counter("burnish_serve_swaps_total", "swaps", "Exchanges of weights, by result: done or refused.", "result"),
    _histogram(
        "burnish_serve_swap_seconds",
        "Time to load weights and let them answer.",
        _SECONDS,
        alias="vllm:rl_weight_update_operation_duration_seconds",
    ),
    _gauge("burnish_serve_mismatch", "nats", "Mean difference of served and learnt log-probabilities.", "model", "arm"),
    _gauge("burnish_serve_weights", "", "1, with the beginning of the fingerprint.", "model", "arm", "fingerprint"),
    _counter("burnish_serve_feedback_total", "ratings", "Feedback by kind of rating.", "model", "arm", "rating"),
    _counter("burnish_serve_unstored_total", "answers", "Answers that could not be written to the store."),
    _gauge("burnish_serve_canary_share", "share", "Requests that the canary gets.", "model"),
    _counter("burnish_serve_rollbacks_total", "rollbacks", "Canaries that were rolled back.", "model"),
    _gauge("burnish_serve_drift", "", "1 while a feature of the traffic has drifted, else 0.", "model", "feature"),
    _gauge("burnish_serve_drift_statistic", "", "How far a feature is from its reference.", "model", "feature"),
    _gauge("burnish_serve_certificate_expiry_timestamp_seconds", "seconds", "When the certificate ends, since 1970."),
    _gauge("burnish_serve_start_timestamp_seconds", "seconds", "When the server started, since 1970."),
)


def catalogue_page() -> str:
    """The catalogue as Markdown, docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made from `burnish.monitoring.catalogue` by `burnish monitor metrics`; a test holds it.",
        "",
    ]
    for title, specs in (("Training", TRAINING), ("Serving", SERVING)):
        lines += [
            f"## {title}",
            "",
            "| name | kind | unit | labels | meaning | vLLM's name |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| `{spec.name}` | {spec.kind} | {spec.unit} | {', '.join(spec.labels)} | {spec.meaning} | "
            f"{f'`{spec.alias}`' if spec.alias else ''} |"
            for spec in specs
        ]
        lines.append("")
    return "\n".join(lines)

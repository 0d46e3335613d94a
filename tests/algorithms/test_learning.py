"""What only an algorithm on a dataset can show."""

import hashlib
from pathlib import Path

import pytest
import torch

from burnish.algorithms.run_record import inexact
from burnish.algorithms.session import load_roles, prepare, train
from burnish.config.loading import changed_settings
from burnish.data.order import EndlessOrder
from burnish.errors import ConfigError, DataError
from burnish.reproducibility.code_state import package_sha256
from burnish.reproducibility.environment import environment_record


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_training_every_pair_is_a_tie(make_config, quiet, dtype: str) -> None:
    """The reference's log-probabilities are the policy's own, bit by bit."""
    run = train(make_config("dpo", model__compute_dtype=dtype, train__num_steps=1), quiet)
    assert [item["margin"] for item in run.read_step("evaluations", 0)] == [0.0] * 4
    assert "held-out preference accuracy before training: 0.500" in quiet.file.getvalue()


def test_the_reference_is_computed_once(make_config, quiet) -> None:
    train(make_config("dpo", train__num_steps=1), quiet)
    train(make_config("dpo", train__num_steps=1, loss__beta=0.5), quiet)
    assert quiet.file.getvalue().count("computing the reference's log-probabilities") == 1


def test_a_controller_holds_the_margin(make_config, quiet) -> None:
    beta = {"kind": "target", "metric": "kl", "target": 1e-3, "start": 0.1, "rate": 1.0}
    run = train(make_config("dpo", train__num_steps=8, loss__beta=beta), quiet)
    values = [line["coefficient.beta"] for line in run.metrics()]
    assert values[0] == 0.1 and len(set(values)) > 4


def test_several_losses_are_each_logged(make_config, quiet) -> None:
    run = train(make_config("dpo", train__num_steps=2, loss__weights={"sigmoid": 1.0, "nll": 0.5}), quiet)
    for line in run.metrics():
        assert line["loss"] == pytest.approx(line["loss.sigmoid"] + 0.5 * line["loss.nll"], rel=1e-5)


def test_an_own_loss_in_every_algorithm_that_takes_one(make_config, quiet, tmp_path) -> None:
    (tmp_path / "own_losses.py").write_text(
        "import torch\nfrom burnish.losses.loss import loss\n"
        "from burnish.losses.preference import pairs_of\n"
        "def likelihood(scored, batch):\n    return -(scored.logprobs_S * batch.weights_S).sum()\n"
        "@loss(normalizer='groups', needs_whole_groups=True)\n"
        "def exponential(scored, batch):\n"
        "    pairs = pairs_of(scored, batch, has_reference=True)\n"
        "    return torch.exp(-0.1 * (pairs.chosen_logratios_G - pairs.rejected_logratios_G)).sum()\n"
        "@loss(normalizer='sequences')\n"
        "def toward_labels(scored, batch):\n    return ((scored.values_S - batch.scores_B) ** 2).sum()\n"
        "@loss()\n"
        "def vector(scored, batch):\n    return -scored.logprobs_S\n"
    )
    for algorithm, name in (("sft", "likelihood"), ("dpo", "exponential"), ("reward_model", "toward_labels")):
        run = train(make_config(algorithm, train__num_steps=8, loss={"own": f"own_losses:{name}"}), quiet)
        losses = [line["loss"] for line in run.metrics()]
        assert losses[-1] < losses[0], algorithm
    with pytest.raises(DataError, match="must return one summed number as a tensor, got shape"):
        train(make_config("sft", loss={"own": "own_losses:vector"}), quiet)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"weights": {"sigmod": 1.0}}, "no loss is named 'sigmod'; known: sigmoid"),
        ({"weights": {}}, "name at least one loss"),
        (
            {"label_smoothing": 0.1},
            r"loss\.label_smoothing would be ignored: .* only cdpo, exo, robust",
        ),
        ({"margin": 0.1}, r"loss\.margin would be ignored: of the named losses only simpo use it"),
        ({"weights": {"nll": 1.0}, "beta": 0.2}, r"loss\.beta would be ignored"),
        ({"weights": {"exo": 1.0}}, "must be above 0 for exo"),
        ({"own": "m:f", "beta": 0.2}, r"loss\.own is used instead"),
    ],
)
def test_settings_that_would_be_ignored(make_config, loss, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("dpo", loss=loss)


def test_kto_needs_both_labels_and_several_prompts(make_config, tmp_path) -> None:
    config = make_config("kto")
    rows = (tmp_path / "_labelled.jsonl").read_text()
    (tmp_path / "_labelled.jsonl").write_text(rows.replace("false", "true"))
    with pytest.raises(DataError, match="all labels are the same"):
        prepare(config)


def test_kto_needs_several_prompts(make_config, tmp_path) -> None:
    config = make_config("kto")
    labels = [
        f'{{"prompt": "{"held out" if i < 4 else "same"} {min(i, 4)}", "completion": "a", "label": true}}\n'
        for i in range(9)
    ]
    (tmp_path / "_labelled.jsonl").write_text("".join(labels))
    with pytest.raises(DataError, match="at least two different prompts"):
        prepare(config)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 9])
def test_the_reference_is_of_what_is_visited(make_config, num_steps: int) -> None:
    """Batches of 3 from 10 examples: some of the first epoch, or all."""
    inputs = prepare(make_config("dpo", train__num_steps=num_steps))
    roles = load_roles(inputs.config)
    inputs.compute_reference(roles, lambda text: None)
    visited = sorted(set(EndlessOrder(range(10), seed=inputs.config.seed).next(3 * num_steps)))
    assert inputs.visited.tolist() == visited
    for index in visited:
        batch = inputs.batch([index])
        expected = roles.score(batch).logprobs_S
        assert torch.allclose(batch.reference_logprobs_S, expected, atol=1e-5)
    for index in set(range(11)) - set(visited):
        with pytest.raises(ValueError, match="were to be visited"):
            inputs.places([visited[0], index])


def test_the_largest_step_is_the_longest_examples(make_config) -> None:
    inputs = prepare(make_config("dpo", data__batch_size=4))
    expected = sorted(inputs.examples.train, key=lambda example: -example.num_tokens)[:4]
    assert list(inputs.largest_step().examples) == expected


def test_what_a_dry_run_says(make_config) -> None:
    summary = prepare(make_config("dpo")).summary()
    assert summary.startswith("10 to train on, 4 held out, longest 42 tokens, 6 steps of 3 (1.8 epochs), model ")
    assert summary.endswith("rejected: [not 0<|im_end|>]")


def test_the_kl_baseline_looks_at_other_prompts_answers(make_config) -> None:
    inputs = prepare(make_config("kto"))
    for index in range(len(inputs.examples.train)):
        own, other = inputs.examples.train[index], inputs.mismatched(index)
        assert other.prompt_ids == own.prompt_ids and other.branches[0] != own.branches[0]


def test_a_reward_model_is_a_classifier_that_others_load(make_config, quiet) -> None:
    from transformers import AutoModelForSequenceClassification

    run = train(make_config("reward_model"), quiet)
    model = AutoModelForSequenceClassification.from_pretrained(run.checkpoints / "step-000006")
    items = run.read_step("evaluations", 6)
    inputs = prepare(make_config("reward_model"))
    for example, item in zip(inputs.examples.held_out, items, strict=True):
        for branch, reward in zip(example.branches, item["rewards"], strict=True):
            ids = torch.tensor([[*example.prompt_ids, *branch.token_ids]])
            hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
            assert model.score(hidden).item() == pytest.approx(reward, abs=1e-4)


def test_teachers_must_share_the_vocabulary(make_config, tmp_path, tiny_folder) -> None:
    import shutil

    other = shutil.copytree(tiny_folder, tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace('"<|endoftext|>"', '"<|other|>"')
    (other / "tokenizer.json").write_text(text)
    config = make_config("distillation", teachers=[{"path": str(other)}])
    with pytest.raises(ConfigError, match=r"teachers: the vocabulary of .*other is not that of"):
        prepare(config)


def test_each_task_has_its_teachers(make_config, tiny_teacher_folder, tmp_path) -> None:
    teachers = [
        {"path": str(tiny_teacher_folder), "where": {"family": "a"}, "weight": 3.0},
        {"path": str(tiny_teacher_folder)},
    ]
    config = make_config("distillation", teachers=teachers)
    rows = [f'{{"prompt": "q{i}", "answer": "{i}", "family": "{"ab"[i % 2]}"}}\n' for i in range(14)]
    (tmp_path / "_tasks.jsonl").write_text("".join(rows))
    inputs = prepare(config)
    for prompt in inputs.train:
        expected = {0: 0.75, 1: 0.25} if prompt.task.extra["family"] == "a" else {1: 1.0}
        assert inputs.shares(prompt.task) == expected
    only_a = make_config("distillation", teachers=teachers[:1])
    with pytest.raises(DataError, match="none of them teaches the task 'q"):
        prepare(only_a)


@pytest.mark.parametrize("kind", ["sampled", "forward_kl", "reverse_kl", "jsd"])
def test_every_divergence_is_learnt(make_config, quiet, kind: str) -> None:
    changes = {} if kind == "sampled" else {"loss__top_k": 20}
    config = make_config("distillation", train__num_steps=12, optimizer__learning_rate=1e-2, loss__kind=kind, **changes)
    lines = train(config, quiet).metrics()
    first, last = (sum(line["divergence"] for line in part) / 4 for part in (lines[:4], lines[-4:]))
    assert last < first


def test_a_reward_model_is_a_reward(make_config, quiet, tiny_folder) -> None:
    """What it says of a rollout is what it says of the same tokens when it is evaluated."""
    from burnish.data.packing import ends_only, example_of, pack
    from burnish.distributed.local import build_local_roles
    from burnish.distributed.roles import RoleNeeds
    from burnish.records import Completion, Prompt, Rollout, RolloutGroup

    trained = train(make_config("reward_model"), quiet).checkpoints / "step-000006"
    config = make_config("grpo", task__reward=f"model:{trained}", train__num_steps=2, evaluation__right_at=0.0)
    run = train(config, quiet)
    prompts = {prompt.task.id: prompt for prompt in prepare(config).train}
    judge = build_local_roles(make_config("reward_model", model__path=str(trained)), RoleNeeds(kind="value"))
    for group in run.read_step("rollouts", 1):
        prompt: Prompt = prompts[group["task_id"]]
        rollouts = []
        for each in group["rollouts"]:
            zeros = (0.0,) * len(each["token_ids"])
            completion = Completion(
                token_ids=tuple(each["token_ids"]),
                text="",
                sampling_logprobs=zeros,
                model_logprobs=zeros,
                finish_reason="stop",
            )
            rollouts.append(Rollout(completion=completion, reward=0.0))
        example = example_of(RolloutGroup(id=0, prompt=prompt, rollouts=tuple(rollouts), weight_version=0))
        values = judge.score(ends_only(pack([example]))).values_S.tolist()
        assert [each["reward"] for each in group["rollouts"]] == pytest.approx(values, abs=1e-5)
    with pytest.raises(ConfigError, match="is no reward model: train one"):
        prepare(make_config("grpo", task__reward=f"model:{tiny_folder}"))


PAIR_LOSSES = """
from torch.nn.functional import logsigmoid
from burnish import loss
from burnish.losses.preference import pairs_of

def plain(scored, batch):
    pairs = pairs_of(scored, batch, has_reference=True)
    return (-logsigmoid(pairs.chosen_logratios_G - pairs.rejected_logratios_G) * pairs.weights_G).sum()

declared = loss(normalizer="groups", needs_whole_groups=True)(plain)

class Wrong:
    normalizer = "pairs"
    needs_whole_groups = True
    def __call__(self, scored, batch):
        return plain(scored, batch)
"""


def test_an_own_loss_of_pairs_is_declared_and_watched(make_config, quiet, tmp_path) -> None:
    (tmp_path / "of_pairs.py").write_text(PAIR_LOSSES)
    (line, *_) = train(make_config("dpo", loss__own="of_pairs:declared"), quiet).metrics()
    named = train(make_config("dpo", loss__beta=1.0), quiet).metrics()[0]
    for name in ("loss", "reward_margin", "reward_accuracy", "drift_chosen", "drift_rejected", "kl"):
        assert line[name] == pytest.approx(named[name], abs=1e-6), name
    with pytest.raises(ConfigError, match="does not say that it needs both sides of a pair"):
        train(make_config("dpo", loss__own="of_pairs:plain"), quiet)
    with pytest.raises(ConfigError, match="normalizer='pairs' is not known; give one of scored_tokens"):
        train(make_config("dpo", loss__own="of_pairs:Wrong"), quiet)


def test_a_run_is_a_model(make_config, quiet) -> None:
    run = train(make_config("sft", name="first"), quiet)
    for path in (run.path, run.path.parent / "first"):
        again = train(make_config("sft", name="again", model__path=str(path), train__num_steps=1), quiet)
        assert again.record()["model"]["source"].endswith("checkpoints/step-000006")


def test_a_record_says_what_was_read_and_which_run_it_goes_back_to(make_config, quiet) -> None:
    config = make_config("sft", train__num_steps=1)
    first = train(config, quiet)
    source = Path(config.data.source)
    found = first.record()
    assert found["files"] == {
        "data.source": {
            "path": config.data.source,
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "fields": ["completion", "prompt"],
        }
    }
    assert found["parents"] == []
    (checkpoint,) = first.checkpoints.glob("step-*")
    second = train(make_config("sft", train__num_steps=1, model__path=str(checkpoint)), quiet)
    assert second.record()["parents"] == [{"run": first.path.name, "folder": f"checkpoints/{checkpoint.name}"}]


def test_another_layout_is_said_of_a_run_that_goes_on(make_config) -> None:
    config = make_config("sft", cluster={"kind": "ray", "learners": 2})
    record = {
        "settings": changed_settings(config),
        "environment": environment_record(config.model.num_threads),
        "code": {"package": {"sha256": package_sha256()}},
    }
    assert inexact(record, config) == []
    (said,) = inexact(record, make_config("sft"))
    assert said == "cluster.kind ray -> local, cluster.learners 2 -> 1: sums are added in another order"

from pathlib import Path

import pytest

from burnish.serving.loading import inside
from burnish.serving.refusals import RefusedError


def make_run(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / "checkpoints" / f"step-{step:06}").mkdir(parents=True)
    (folder / "run.json").write_text("{}")


def test_a_run_by_its_name_is_its_newest_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path / "better-1a2b3c", 10, 20)
    newest = tmp_path / "better-1a2b3c" / "checkpoints" / "step-000020"
    for path in ("better", "better-1a2b3c", "better-1a2b3c/checkpoints/step-000020"):
        assert inside(tmp_path, path) == newest


@pytest.mark.parametrize("path", ["../runs/better", "better", "*", "**", "linked"])
def test_a_run_elsewhere_or_one_of_several_is_refused(tmp_path: Path, path: str) -> None:
    weights = tmp_path / "weights"
    make_run(tmp_path / "runs" / "better-1a2b3c", 10)
    make_run(weights / "better-1a2b3c", 10)
    make_run(weights / "better-4d5e6f", 10)
    (weights / "linked-1a2b3c").symlink_to(tmp_path / "runs" / "better-1a2b3c")
    with pytest.raises(RefusedError, match=r"no folder below admin\.weights_folder"):
        inside(weights, path)


def test_a_run_of_adapters_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "adapted-1a2b3c", 10)
    (tmp_path / "adapted-1a2b3c" / "checkpoints" / "step-000010" / "adapter_config.json").write_text("{}")
    with pytest.raises(RefusedError, match="only whole weights"):
        inside(tmp_path, "adapted")

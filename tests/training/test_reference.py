import pytest
import torch

from burnish.data.packing import pack
from burnish.errors import MachineError
from burnish.records import Branch, Example
from burnish.training.reference import cached_reference, in_chunks


def examples(count: int = 40) -> list[Example]:
    return [
        Example(id=str(i), prompt_ids=(i, 1), branches=(Branch(token_ids=(i, 2)), Branch(token_ids=(3,) * (i % 4 + 1))))
        for i in range(count)
    ]


def compute(batch):
    return batch.target_ids_S.float() + 0.5


def test_each_example_gets_its_own(tmp_path) -> None:
    said: list[str] = []
    reference = cached_reference(tmp_path / "new", in_chunks(examples()), {"model": "a"}, compute, said.append)
    for indices in ([0], [5, 3, 39], [7, 7]):
        batch = pack([examples()[index] for index in indices])
        assert torch.equal(reference.of(indices), compute(batch))
    assert said == ["computing the reference's log-probabilities of 40 examples"]


def test_it_is_computed_once(tmp_path) -> None:
    first = cached_reference(tmp_path, in_chunks(examples()), {"model": "a"}, compute, lambda _: None)
    again = cached_reference(tmp_path, in_chunks(examples()), {"model": "a"}, lambda batch: 1 / 0, lambda _: None)
    assert torch.equal(first.of([3]), again.of([3]))
    for other, origin in ((examples(), {"model": "b"}), (examples(39), {"model": "a"})):
        with pytest.raises(ZeroDivisionError):
            cached_reference(tmp_path, in_chunks(other), origin, lambda batch: 1 / 0, lambda _: None)


def test_a_damaged_file_is_named(tmp_path) -> None:
    cached_reference(tmp_path, in_chunks(examples()), {}, compute, lambda _: None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MachineError, match=r"is damaged .*: delete it, it is made again"):
        cached_reference(tmp_path, in_chunks(examples()), {}, compute, lambda _: None)

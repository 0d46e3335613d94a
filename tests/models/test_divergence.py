import pytest
import torch
from torch.nn import functional as F

from burnish.models.divergence import Divergence, scored_divergence
from burnish.models.head import Head
from burnish.models.logprobs import CHUNK_ROWS, log_collisions, scored_logprobs

ROWS, HIDDEN, TEACHER_HIDDEN, VOCABULARY = CHUNK_ROWS + 9, 6, 5, 40


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sides():
    student = (draw(ROWS, HIDDEN, seed=0).requires_grad_(), draw(VOCABULARY, HIDDEN, seed=1).requires_grad_())
    return student, (draw(ROWS, TEACHER_HIDDEN, seed=2), draw(VOCABULARY, TEACHER_HIDDEN, seed=3))


def divergence_of(divergence: Divergence, sides, temperature: float) -> torch.Tensor:
    student, teacher = ((hidden, Head(weight)) for hidden, weight in sides)
    return scored_divergence(divergence, student, teacher, temperature)


def naive(kind: str, sides, temperature: float) -> torch.Tensor:
    return naive_of_logits(kind, [hidden @ weight.T for hidden, weight in sides], temperature)


def naive_of_logits(kind: str, logits: list[torch.Tensor], temperature: float) -> torch.Tensor:
    student, teacher = ((each / temperature).log_softmax(1) for each in logits)
    if kind == "forward_kl":
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)
    if kind == "reverse_kl":
        return F.kl_div(teacher, student, log_target=True, reduction="none").sum(1)
    mixture = ((student.exp() + teacher.exp()) / 2).log()
    halves = [F.kl_div(mixture, side, log_target=True, reduction="none").sum(1) for side in (student, teacher)]
    return sum(halves) / 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_against_torch(sides, kind: str, temperature: float) -> None:
    weights = draw(ROWS, seed=4)
    student, _ = sides
    expected = naive(kind, sides, temperature)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), student)
    found = divergence_of(Divergence(kind=kind), sides, temperature)
    gradients = torch.autograd.grad((found * weights).sum(), student)
    assert torch.allclose(found, expected, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm()


def test_heads_beyond_one_matrix(sides) -> None:
    (hidden, weight), (teacher_hidden, teacher_weight) = sides
    bias = draw(VOCABULARY, seed=6).requires_grad_()
    student = Head(weight, bias, scale=0.5, softcap=1.5)
    found = scored_divergence(
        Divergence(kind="jsd"), (hidden, student), (teacher_hidden, Head(teacher_weight, scale=2.0)), 0.7
    )
    logits = [1.5 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 1.5), 2.0 * teacher_hidden @ teacher_weight.T]
    expected = naive_of_logits("jsd", logits, 0.7)
    assert torch.allclose(found, expected, atol=1e-5)
    inputs = (hidden, weight, bias)
    pairs = zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True)
    for gradient, wanted in pairs:
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_top_k_lumps_the_rest_together(sides, kind: str) -> None:
    full = divergence_of(Divergence(kind=kind), sides, 1.0)
    previous = torch.zeros_like(full)
    for top_k in (1, 3, 10, VOCABULARY - 1):
        coarse = divergence_of(Divergence(kind=kind, top_k=top_k), sides, 1.0)
        assert (coarse <= full + 1e-5).all() and (coarse >= previous - 1e-5).all()
        previous = coarse
    assert torch.allclose(previous, full, atol=1e-5)


def test_top_1_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): seen as (1/2, 1/2) and (1/4, 3/4)."""
    teacher, student = (torch.tensor([row]).log() for row in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert Divergence(kind="forward_kl", top_k=1)(student, teacher).item() == pytest.approx(expected.item())


def test_a_model_does_not_diverge_from_itself(sides) -> None:
    student, _ = sides
    assert divergence_of(Divergence(kind="jsd"), (student, student), 1.0).abs().max() < 1e-6


def test_the_gradient_of_the_entropy(sides) -> None:
    (hidden, head), _ = sides
    targets, weights = torch.arange(ROWS) % VOCABULARY, draw(ROWS, seed=5)
    logprobs = (hidden @ head.T / 0.8).log_softmax(1)
    wanted = logprobs[torch.arange(ROWS), targets] + 2 * weights * -(logprobs.exp() * logprobs).sum(1)
    expected = torch.autograd.grad(wanted.sum(), (hidden, head))
    found, entropy = scored_logprobs(hidden, Head(head), targets, 0.8)
    gradients = torch.autograd.grad((found + 2 * weights * entropy).sum(), (hidden, head))
    for gradient, each in zip(gradients, expected, strict=True):
        assert (gradient - each).norm() < 1e-5 * each.norm()


def test_collisions(sides) -> None:
    (hidden, head), _ = sides
    expected = ((hidden @ head.T).softmax(1) ** 2).sum(1).log()
    assert torch.allclose(log_collisions(hidden, Head(head)), expected, atol=1e-5)

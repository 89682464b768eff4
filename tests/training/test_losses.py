import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from fiqa_trt.training.losses import MSECorrLoss, pearson  # noqa: E402

Array = npt.NDArray[np.float64]


def reference(x: Array, y: Array, weight: float) -> float:
    return float(np.mean((x - y) ** 2) + weight * (1 - np.corrcoef(x, y)[0, 1]))


@given(st.integers(3, 64), st.integers(0, 2**31), st.floats(0, 5))
def test_value_equals_the_float64_reference(count: int, seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random(count), rng.random(count)
    loss = MSECorrLoss(weight)(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))
    assert float(loss) == pytest.approx(reference(x, y, weight), abs=1e-4)


def test_gradient() -> None:
    torch.manual_seed(0)
    x = torch.rand(8, dtype=torch.float64, requires_grad=True)
    y = torch.rand(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda prediction: MSECorrLoss(0.7)(prediction, y), (x,))


def test_float32_gradient_equals_float64() -> None:
    torch.manual_seed(1)
    x, y = torch.rand(32, dtype=torch.float64), torch.rand(32, dtype=torch.float64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        prediction = x.to(dtype).requires_grad_()
        MSECorrLoss()(prediction, y.to(dtype)).backward()
        assert prediction.grad is not None
        gradients.append(prediction.grad.double())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([0.5], [0.2]),
        ([0.5, 0.5], [0.1, 0.9]),
        ([0.1, 0.9], [0.5, 0.5]),
        ([0.3] * 16, [0.3] * 16),
        ([0.1, 0.2], [0.3, 0.4]),
        ([0.1 + 1e-7, 0.1, 0.1], [0.2, 0.3, 0.4]),
    ],
)
def test_degenerate_batches_have_finite_value_and_gradient(x: list[float], y: list[float]) -> None:
    prediction = torch.tensor(x, requires_grad=True)
    loss: Tensor = MSECorrLoss(0.5)(prediction, torch.tensor(y))
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad.abs().max() < 1000 / len(x)


def test_bf16_is_computed_in_float32() -> None:
    x, y = torch.rand(32), torch.rand(32)
    assert pearson(x.bfloat16(), y).dtype == torch.float32


def test_perfect_and_inverted_prediction() -> None:
    y = torch.linspace(0, 1, 9)
    assert float(MSECorrLoss(2.0)(y, y)) == pytest.approx(0, abs=1e-6)
    assert float(pearson(1 - y, y)) == pytest.approx(-1, abs=1e-6)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        MSECorrLoss(-1)

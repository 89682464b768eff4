import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fiqa_trt.models.networks import Ensemble, ShuffleNetV2  # noqa: E402
from fiqa_trt.models.spec import MEMBERS  # noqa: E402


@pytest.mark.slow
def test_budget_of_the_competition() -> None:
    network = Ensemble().eval()
    images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images)
    # The counter takes a multiply-add for two operations; the budget, as the field does, for one.
    gflops = counter.get_total_flops() / 2 / 1e9
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert 0.15 < gflops < 0.5
    assert 2 < parameters < 5


@pytest.mark.slow
def test_scores_are_between_0_and_1_one_for_each_member() -> None:
    images = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        (scores,) = Ensemble().eval()(images)
    assert scores.shape == (3, len(MEMBERS))
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_normalisation_is_imagenets() -> None:
    images = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert torch.allclose(Ensemble().normalise(images)[0, :, 0, 0], expected, atol=1e-6)


def test_backbone_with_a_foreign_name_is_refused() -> None:
    shufflenet = Ensemble().members[MEMBERS[1]]
    assert isinstance(shufflenet, ShuffleNetV2)
    with pytest.raises(RuntimeError, match="nonsense"):
        shufflenet.load_backbone({"nonsense": torch.zeros(1)})


@pytest.mark.slow
def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = Ensemble().eval()
    for module in network.modules():  # statistics as after training, so that a wrong permutation shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    images = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        (before,) = network(images)
        network.fold()
        (after,) = network(images)
    assert before.std(dim=0).min() > 0
    assert (after - before).abs().max() < 1e-5

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.models.causes import CAUSES, MEANINGS, Causes

names = st.lists(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), unique=True, max_size=10)


@given(names.flatmap(lambda n: st.tuples(st.just(n), st.lists(st.floats(0, 1), min_size=len(n), max_size=len(n)))))
def test_a_checkpoint_tells_the_causes_that_it_was_written_with(pair: tuple[list[str], list[float]]) -> None:
    causes = Causes(tuple(pair[0]), tuple(pair[1]))
    assert Causes.of(causes.metadata()) == causes
    assert len(causes) == len(pair[0])


def test_a_checkpoint_without_them_tells_of_none() -> None:
    assert Causes.of(None) == Causes.of({"format": "pt"}) == Causes()
    assert not Causes()
    assert Causes().metadata() == {}


DAMAGED = ["[", "[]", "{", '{"blur": "x"}', '{"blur": 2}', '{"a b": 0.5}', '{"blur": NaN}', '{"blur": true}', "null"]


@pytest.mark.parametrize("text", [*DAMAGED, '{"blur": %s}' % ("9" * 400), '{"blur": -Infinity}', "[" * 100_000])
def test_damaged_metadata_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, its reader puts the file's name before it
        Causes.of({"causes": text})


def test_ten_causes_with_a_meaning_each() -> None:
    assert len(CAUSES) <= 10
    assert all(MEANINGS.values())
    assert Causes.untuned().names == CAUSES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain.safetensors`, and with heads for two causes: `told` (says so), `mute`, and `other` (says three)."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from fiqa_trt.models.networks import Ensemble

    torch.manual_seed(0)
    network, folder = Ensemble(), tmp_path_factory.mktemp("checkpoints")
    save_file(network.state_dict(), folder / "plain.safetensors")
    two = Causes(("blur", "noise"), (0.25, 0.75))
    network.add_causes(two)
    for name, metadata in (("told", two.metadata()), ("mute", {}), ("other", Causes.untuned(CAUSES[:3]).metadata())):
        save_file(network.state_dict(), folder / f"{name}.safetensors", metadata)
    return folder


@pytest.mark.slow
def test_the_network_of_a_checkpoint_has_its_causes_and_the_same_scores(checkpoints: Path) -> None:
    import torch

    from fiqa_trt.engines.torch import load_checkpoint

    plain, told = (load_checkpoint(checkpoints / f"{name}.safetensors") for name in ("plain", "told"))
    assert told.spec.causes == Causes(("blur", "noise"), (0.25, 0.75))
    images = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        (alone,), (scores, causes) = plain(images), told(images)
        told.fold()
        told.lower(torch.bfloat16)
        lowered = told(images)
    assert torch.equal(scores, alone)
    assert causes.shape == (3, 2)
    assert ((causes > 0) & (causes < 1)).all()
    assert [each.dtype for each in (causes, *lowered)] == [torch.float32] * 3
    assert (lowered[1] - causes).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("name", "why"), [("mute", r"it has members.*causes.bias"), ("other", "size mismatch")])
def test_heads_and_metadata_that_do_not_belong_together(checkpoints: Path, name: str, why: str) -> None:
    from fiqa_trt.engines.torch import load_checkpoint
    from fiqa_trt.errors import EngineError

    with pytest.raises(EngineError, match=why):
        load_checkpoint(checkpoints / f"{name}.safetensors")


def test_metadata_is_what_other_programs_can_read() -> None:
    assert json.loads(Causes.untuned(["pose"]).metadata()["causes"]) == {"pose": 0.5}

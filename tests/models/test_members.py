"""The members of an ensemble come from the file: a third one goes through scoring, filter, report and eval."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from fiqa_trt.cli import group
from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.spec import MEMBERS, ModelSpec
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import SUFFIXES, output_metadata, read_output, read_schema
from fiqa_trt.scores.members import members_of
from fiqa_trt.scores.schema import own_columns
from tests.helpers import mean_executor

THREE = (*MEMBERS, "third")
COLUMNS = [f"score_{name}" for name in THREE]


def call(*arguments: object) -> str:
    done = CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A list of crops of one colour each, in which red, green and blue are apart in different ways, and one that fails.

    It carries a rating from 1 to 5 along, in a column that is named as those of members are.
    """
    (tmp_path / "d").mkdir()
    rng = np.random.default_rng(0)
    with (tmp_path / "l.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "score_mos"))
        for number, colour in enumerate(rng.integers(0, 256, (40, 3)).tolist()):
            path = tmp_path / "d" / f"{number:02}.png"
            Image.new("RGB", (224, 224), tuple(colour)).save(path)
            rows.writerow((path, 1 + sum(colour) / 200))
        (tmp_path / "d" / "bad.png").write_bytes(b"x")
        rows.writerow((tmp_path / "d" / "bad.png", 1))
    return tmp_path / "l.csv"


@pytest.fixture(params=SUFFIXES)
def scored(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    """What three members make of them."""
    output = tmp_path / f"s{request.param}"
    score_dataset(Source(list_file=str(plain)), output, lambda: mean_executor(members=THREE))
    return output


def rows(scores: Path) -> pa.Table:
    return pa.concat_tables(read_output(scores, own_columns(THREE)))


def test_scoring(scored: Path) -> None:
    table = rows(scored)
    assert table.column_names == [*own_columns(THREE), "score_mos"]
    assert members_of(table.schema) == THREE
    assert [table.schema.field(name).type for name in COLUMNS] == [pa.float32()] * 3
    good = table.slice(0, 40)
    three = np.stack([good[name].to_numpy() for name in COLUMNS])
    assert good["score"].to_numpy() == pytest.approx(three.mean(axis=0), abs=1e-6)
    again = score_dataset(
        Source(list_file=str(scored.with_name("l.csv"))), scored, lambda: mean_executor(members=THREE)
    )
    assert (again.already, again.failed) == (True, 1)


@pytest.mark.slow
def test_retry_and_update(scored: Path) -> None:
    before = rows(scored)
    Image.new("RGB", (224, 224), (10, 20, 90)).save(scored.parent / "d" / "bad.png")
    assert retry_failed(scored, lambda: mean_executor(members=THREE)).failed == 0
    assert rows(scored).slice(0, 40).equals(before.slice(0, 40))
    assert [rows(scored)[name][40].as_py() for name in COLUMNS] == pytest.approx([10 / 255, 20 / 255, 90 / 255])
    Image.new("RGB", (224, 224), (0, 0, 255)).save(scored.parent / "d" / "00.png")
    source = Source(list_file=str(scored.with_name("l.csv")))
    assert update_dataset(source, scored, lambda: mean_executor(members=THREE)).scored_now == 1
    assert rows(scored)["score_third"][0].as_py() == 1


@pytest.mark.slow
def test_filter_by_disagreement(scored: Path, tmp_path: Path) -> None:
    three = np.stack([rows(scored).slice(0, 40)[name].to_numpy() for name in COLUMNS])
    apart = three.max(axis=0) - three.min(axis=0)
    assert (apart > 0.5).sum() > (np.abs(three[0] - three[1]) > 0.5).sum() > 0
    kept = tmp_path / "k.csv"
    call("filter", scored, "--max-disagreement", 0.5, "-o", kept)
    names = [Path(path).stem for path in pa.concat_tables(read_output(kept, ["path"]))["path"].to_pylist()]
    assert names == [f"{number:02}" for number in np.flatnonzero(apart <= np.float32(0.5))]
    assert members_of(read_schema(kept, ["path"])) == THREE


def test_report(scored: Path, tmp_path: Path) -> None:
    three = np.stack([rows(scored).slice(0, 40)[name].to_numpy() for name in COLUMNS]).astype(float)
    found = json.loads(call("report", scored, "-o", tmp_path / "r.html", "--no-images", "--json"))["agreement"]
    assert found["mean"] == pytest.approx(np.ptp(three, axis=0).mean(), abs=1e-3)
    assert found["correlation"] == pytest.approx(np.corrcoef(three)[np.triu_indices(3, 1)].min(), abs=1e-6)
    page = (tmp_path / "r.html").read_text()
    assert "The 3 networks differ by" in page
    assert "the correlation of any two is at least" in page


def test_eval(scored: Path) -> None:
    labels = scored.with_name("labels.csv")
    table = rows(scored).slice(0, 40)
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "mos"))
        writer.writerows(zip(table["path"].to_pylist(), table["score_third"].to_pylist(), strict=True))
    found = json.loads(call("eval", scored, "--labels", labels, "--column", "score_third", "--resamples", 0, "--json"))
    assert found["measures"]["srcc"]["value"] == pytest.approx(1)
    with pytest.raises(InputError, match=f"scores in it: score, {', '.join(COLUMNS)}, score_mos"):
        call("eval", scored, "--labels", labels, "--column", "fourth")
    with pytest.raises(InputError, match=r"carried along: score_mos\)"):
        call("filter", scored, "--keep", "50%", "--group-by", "x", "-o", scored.with_name("k.csv"))


@pytest.mark.parametrize(
    ("names", "members"),
    [
        (["path", "score", *COLUMNS, "width", "status"], THREE),
        (["path", "status", "score", "score_a", "score_b", "width"], ("a", "b")),
        (["path", "score", "score_raw", "score_std", "status"], MEMBERS),  # of another program
        (["path", "width", "score", "score_a", "score_b"], MEMBERS),
        (["path", "score", *COLUMNS[:1], "width"], MEMBERS),  # one is lost
        (["path", "score", "status", *COLUMNS[:2], "score_mos"], MEMBERS),  # in another order
        (["path", "score", "score_mos", "status"], MEMBERS),
        (["path", "status"], MEMBERS),
    ],
)
def test_a_file_that_records_nothing_is_known_by_its_columns(names: list[str], members: tuple[str, ...]) -> None:
    schema = pa.schema([(name, pa.string()) for name in names])
    assert members_of(schema) == members
    for record in (b"{}", b"null", b'{"engine": {"members": null}}', b"junk"):
        assert members_of(schema.with_metadata({b"fiqa_trt": record})) == members
    assert members_of(schema.with_metadata({b"fiqa_trt": b'{"engine": {"members": ["x"]}}'})) == ("x",)


@pytest.mark.slow
def test_a_member_without_a_column(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    score_dataset(Source(list_file=str(plain)), output, lambda: mean_executor(members=THREE))
    assert output_metadata(output) is not None
    pq.write_table(pq.read_table(output).drop_columns(["score_third"]), output)
    with pytest.raises(InputError, match=r"is not an output of this model: it has no column score_third$"):
        call("filter", output, "--max-disagreement", 0.5, "-o", tmp_path / "k.csv")
    assert json.loads(call("report", output, "-o", tmp_path / "r.html", "--json"))["agreement"] == {}


@pytest.mark.slow
def test_a_checkpoint_of_three_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = pytest.importorskip("fiqa_trt.models.networks")
    from safetensors.torch import save_file

    from fiqa_trt.engines.torch import open_torch

    monkeypatch.setitem(networks.NETWORKS, "third", networks.MobileNetV3Small)
    for members in (MEMBERS, THREE):
        path = tmp_path / f"{len(members)}.safetensors"
        save_file(networks.Ensemble(ModelSpec(members=members)).state_dict(), path)
        engine = open_torch(path, "cpu", batch=1)
        assert engine.info.members == members
        assert engine.submit(np.zeros((1, 224, 224, 3), np.uint8)).result().scores.shape == (1, len(members))
        engine.close()
    lone = networks.Ensemble(ModelSpec(members=MEMBERS[1:])).state_dict()
    save_file(lone, tmp_path / "lone.safetensors")
    with pytest.raises(EngineError, match=f"but of one member: fiqa-trt train --member {MEMBERS[0]} --init"):
        open_torch(tmp_path / "lone.safetensors", "cpu")

"""Outputs in object stores: complete or not there, resumed from anywhere, and written by one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fiqa_trt.errors import DifferentRun, OutputError, RunError, StoreError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options, Summary
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.state import RunFolder
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import output_metadata, read_output
from fiqa_trt.storage import lease
from fiqa_trt.storage.places import Uri
from tests.helpers import Stop, invoke, mean_executor, stop_after
from tests.storage.buckets import LISTER, Proxy
from tests.storage.conftest import forget, sign_in
from tests.storage.test_object_faults import now_and_then

UNITS = Options(unit_rows=3)


def stored(name: str, suffix: str = ".parquet") -> Uri:
    return Uri(f"s3://{name}/out/scores{suffix}")


def rows(output: Any) -> list[dict[str, Any]]:
    return [row for table in read_output(output, ["path"]) for row in table.drop_columns(["modified"]).to_pylist()]


def objects(store: Any, below: str = "out") -> list[str]:
    import obstore

    return sorted(each["path"] for page in obstore.list(store, below) for each in page)


def begun(store: Any) -> list[str]:
    """What is in the state of a run."""
    return objects(store, "out/scores.parquet.partial")


def run(given: str, output: Any, options: Options = UNITS, **more: Any) -> Summary:
    return score_dataset(Source((given,)), output, mean_executor, options, **more)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_an_output_is_that_of_a_disk(suffix: str, uploaded: str, name: str, store: Any, tmp_path: Path) -> None:
    run(uploaded, tmp_path / f"o{suffix}")
    run(uploaded, stored(name, suffix))
    assert rows(stored(name, suffix)) == rows(tmp_path / f"o{suffix}")
    assert objects(store) == [f"out/scores{suffix}"]
    assert run(uploaded, stored(name, suffix)).already


@pytest.mark.parametrize("batches", [1, 5, 9])
def test_a_run_that_was_stopped_goes_on(batches: int, uploaded: str, name: str, store: Any, tmp_path: Path) -> None:
    run(uploaded, tmp_path / "o.parquet")
    with pytest.raises(Stop):
        run(uploaded, stored(name), report=stop_after(batches))
    assert not stored(name).exists()
    kept = sum("/parts/" in key for key in begun(store))
    done = run(uploaded, stored(name))
    assert done.images - done.scored_now == 3 * kept
    assert rows(stored(name)) == rows(tmp_path / "o.parquet")
    assert begun(store) == []


def test_another_call_does_not_go_on_with_it(uploaded: str, name: str, store: Any) -> None:
    with pytest.raises(Stop):
        run(uploaded, stored(name), report=stop_after(8))
    with pytest.raises(DifferentRun, match=r"s3://.*partial belongs to another run .unit_rows: 3 there, 4 now"):
        run(uploaded, stored(name), Options(unit_rows=4))
    assert run(uploaded, stored(name), Options(unit_rows=4, restart=True)).scored_now == 12


def test_one_run_at_a_time(uploaded: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(stored(name), 3) as first:
        with pytest.raises(OutputError, match=r"another run is writing s3://.* at this moment, on "):
            run(uploaded, stored(name))
        first.check(now=True)
    assert run(uploaded, stored(name)).scored_now


def test_a_lease_runs_out(uploaded: str, name: str, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_OFTEN", 0.001)  # so that it is not renewed, as of a machine that sleeps
    with RunFolder(stored(name), 3) as first:
        monkeypatch.setattr(lease, "SECONDS", 2)
        time.sleep(2.5)
        assert run(uploaded, stored(name)).scored_now
        with RunFolder(stored(name), 3) as second:
            with pytest.raises(RunError, match="another run has taken over s3://"):
                first.check(now=True)
            second.check(now=True)
    assert objects(store) == ["out/scores.parquet"]


def test_a_lease_is_renewed(name: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 3)
    monkeypatch.setattr(lease, "_OFTEN", 10)
    with RunFolder(stored(name), 3):
        time.sleep(4)
        with (
            pytest.raises(OutputError, match=r"another run is writing .* try again in [1-3] seconds"),
            RunFolder(stored(name), 3),
        ):
            pass


KILLED = """
import os, sys
from fiqa_trt.storage.places import Uri
from tests.helpers import mean_executor
from tests.storage.test_object_outputs import run
seen = 0
def report(progress):
    global seen
    seen += 1
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
run(sys.argv[1], Uri(sys.argv[2]), report=report)
"""


def killed(given: str, output: Uri, batches: int) -> None:
    words = [sys.executable, "-c", KILLED, given, os.fspath(output), str(batches)]
    assert subprocess.run(words, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_at_once_here_and_elsewhere_when_its_lease_has_run_out(
    uploaded: str, name: str, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(uploaded, tmp_path / "o.parquet")
    killed(uploaded, stored(name), 3)
    assert any("/lease-" in key for key in begun(store))
    assert run(uploaded, stored(name)).scored_now < 12
    assert rows(stored(name)) == rows(tmp_path / "o.parquet")
    stored(name).unlink()
    killed(uploaded, stored(name), 3)
    here = lease._machine()
    monkeypatch.setattr(lease, "_machine", lambda: f"elsewhere {here}")
    with pytest.raises(OutputError, match="another run is writing"):
        run(uploaded, stored(name))
    monkeypatch.setattr(lease, "SECONDS", 0)
    monkeypatch.setattr(lease, "_OFTEN", 0.001)
    assert run(uploaded, stored(name)).scored_now < 12
    assert rows(stored(name)) == rows(tmp_path / "o.parquet")
    assert begun(store) == []


@pytest.mark.parametrize("fault", ["503", "reset", "short"])
def test_faults_that_pass_change_nothing(
    fault: str, uploaded: str, name: str, store: Any, proxy: Proxy, tmp_path: Path
) -> None:
    run(uploaded, tmp_path / "o.parquet")
    proxy.fault = now_and_then(fault)
    run(uploaded, stored(name))
    assert rows(stored(name)) == rows(tmp_path / "o.parquet")
    proxy.fault = lambda method, path: None
    assert begun(store) == []


def test_a_store_that_takes_nothing_any_more_ends_the_run(uploaded: str, name: str, store: Any, proxy: Proxy) -> None:
    proxy.fault = lambda method, path: "403" if "/parts/" in path and method == "PUT" else None
    with pytest.raises(StoreError, match=r"cannot write s3://.*access denied .403 Forbidden, ExpiredToken"):
        run(uploaded, stored(name))
    proxy.fault = lambda method, path: None
    assert run(uploaded, stored(name)).scored_now == 12


def test_without_permission_to_write_nothing_is_scored(
    uploaded: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, *LISTER)
    with pytest.raises(StoreError, match=r"cannot write s3://.*access denied"):
        run(uploaded, stored(name), report=stop_after(1))


def test_an_output_among_its_inputs_is_not_one(uploaded: str, name: str, store: Any) -> None:
    output = Uri(f"{uploaded}/scores.parquet")
    options = Options(unit_rows=3)
    source = Source((uploaded,), all_files=True)
    with pytest.raises(Stop):
        score_dataset(source, output, mean_executor, options, report=stop_after(8))
    done = score_dataset(source, output, mean_executor, options)
    assert (done.images, done.scored_now < 12) == (12, True)
    assert score_dataset(source, output, mean_executor, options).already


def test_an_output_is_updated_in_its_store(uploaded: str, name: str, store: Any, crops: Path) -> None:
    import obstore

    run(uploaded, stored(name))
    obstore.put(store, "crops/a/new.jpg", (crops / "a" / "0.jpg").read_bytes())
    said = list[str]()
    update_dataset(Source((uploaded,)), stored(name), mean_executor, UNITS, say=said.append)
    assert any("1 new, 0 changed, 12 unchanged, 0 gone" in line for line in said)
    assert len(rows(stored(name))) == 13


def test_what_is_in_the_place_of_the_state_stays(uploaded: str, name: str, store: Any) -> None:
    import obstore

    obstore.put(store, "out/scores.parquet.partial/mine.txt", b"x")
    with pytest.raises(OutputError, match=r"partial is no run's state, it holds mine.txt"):
        run(uploaded, stored(name))
    assert begun(store) == ["out/scores.parquet.partial/mine.txt"]


def test_no_secret_is_written_down(
    uploaded: str, crops: Path, name: str, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    import obstore

    monkeypatch.setattr("sys.argv", ["fiqa-trt"])
    signed = [obstore.sign(store, "GET", f"crops/a/{index}.jpg", timedelta(minutes=5)) for index in (0, 2)]
    (tmp_path / "list.txt").write_text("\n".join([*signed, f"{uploaded}/b/1.jpg"]))
    with pytest.raises(Stop):
        score_dataset(Source(list_file=str(tmp_path / "list.txt")), stored(name), mean_executor, Options(unit_rows=1),
                      report=stop_after(2))  # fmt: skip
    secrets = (b"X-Amz", b"s3cret")

    def written() -> list[str]:
        return [key for key in objects(store) if any(s in bytes(obstore.get(store, key).bytes()) for s in secrets)]

    assert written() == []
    score_dataset(Source(list_file=str(tmp_path / "list.txt")), stored(name), mean_executor, Options(unit_rows=1))
    assert written() == []
    assert output_metadata(stored(name)) is not None
    done = invoke("score", signed[0], "-o", tmp_path / "o.parquet", "-q")
    assert "X-Amz" not in f"{done.output}{done.exception}"


def test_the_keys_of_a_profile(uploaded: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text(
        "[good]\naws_access_key_id = admin\naws_secret_access_key = s3cret-of-admin\n"
        "[bad]\naws_access_key_id = admin\naws_secret_access_key = another\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    for profile in ("good", "bad"):
        monkeypatch.setenv("AWS_PROFILE", profile)
        forget()
        if profile == "good":
            assert run(uploaded, tmp_path / "o.parquet").images == 12
        else:
            with pytest.raises(StoreError, match="access denied"):
                run(uploaded, tmp_path / "p.parquet")

"""What networks, servers and expired keys do to a run: no row changes, and a run that ends may go on."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fiqa_trt.errors import RunError, StoreError
from fiqa_trt.executors.in_process import FEW
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage import clients, objects
from fiqa_trt.storage.objects import ObjectStore
from tests.helpers import invoke, mean_executor, tar
from tests.storage.buckets import Fault, Proxy
from tests.storage.conftest import forget, sign_in, upload

Score = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """Rows of a run, and of one that went on."""

    def scored(given: str, output: str = "o.parquet") -> list[dict[str, Any]]:
        score_dataset(Source((given,)), tmp_path / output, mean_executor, Options(unit_rows=3))
        return list(pq.read_table(tmp_path / output).to_pylist())

    return scored


@pytest.fixture(params=["folder", "tar", "parquet"])
def images(request: pytest.FixtureRequest, uploaded: str, crops: Path, store: Any) -> str:
    """The crops as objects, or in one."""
    files, root = sorted(crops.rglob("*.jpg")), uploaded.removesuffix(crops.name)
    if request.param == "tar":
        upload(store, tar(crops.parent / "t.tar", [(path.name, path.read_bytes()) for path in files]))
        return f"{root}t.tar"
    if request.param == "parquet":
        import pyarrow as pa

        table = pa.table({"image": [path.read_bytes() for path in files]})
        pq.write_table(table, crops.parent / "t.parquet", row_group_size=2)
        upload(store, crops.parent / "t.parquet")
        return f"{root}t.parquet"
    return uploaded


def now_and_then(*faults: str, share: float = 0.2) -> Fault:
    drawn = random.Random(7)
    return lambda method, path: drawn.choice(faults) if drawn.random() < share else None


def after(proxy: Proxy, requests: int, fault: str) -> Fault:
    return lambda method, path: fault if len(proxy.requests) > requests else None


@pytest.mark.parametrize("fault", ["503", "429", "reset", "short"])
def test_faults_that_pass_change_no_row(images: str, proxy: Proxy, score: Score, fault: str) -> None:
    expected = score(images)
    proxy.fault = now_and_then(fault)
    assert score(images, "again.parquet") == expected


@pytest.mark.parametrize("fault", ["503", "403", "reset", "short"])
def test_faults_that_stay_end_the_run_which_goes_on(
    images: str, proxy: Proxy, score: Score, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_FRESH_SECONDS", 0.0)  # as of a run that takes longer
    expected, whole, said = score(images), len(proxy.requests), list[str]()
    for some in (1, whole // 4, whole // 2):
        stop = len(proxy.requests) + some
        proxy.fault = after(proxy, stop, fault)
        try:
            found = score(images, f"{some}.parquet")
            # How many it takes depends on what is asked for at once, and an answer without a body is never short.
            assert all(fault == "short" and method == "HEAD" for method, _ in proxy.requests[stop:])
        except RunError as exc:
            said.append(str(exc))
            proxy.fault = lambda method, path: None
            found = score(images, f"{some}.parquet")
        proxy.fault = lambda method, path: None
        assert found == expected
    assert said
    assert all(re.fullmatch("cannot read s3://crops/.*once that is mended", each) for each in said)


def test_finished_units_are_kept(uploaded: str, proxy: Proxy, tmp_path: Path) -> None:
    listed = [f"{uploaded}/a/{index % 5 * 2}.jpg" for index in range(200)] + [f"{uploaded}/b/5.jpg"]
    (tmp_path / "l.txt").write_text("\n".join(listed))
    source, output = Source(list_file=str(tmp_path / "l.txt")), tmp_path / "o.parquet"
    proxy.fault = lambda method, path: "403" if path.endswith("/b/5.jpg") else None
    with pytest.raises(RunError, match=r"access denied \(403 Forbidden, ExpiredToken\)"):
        score_dataset(source, output, mean_executor, Options(unit_rows=3))
    proxy.fault, before = (lambda method, path: None), len(proxy.requests)
    assert score_dataset(source, output, mean_executor, Options(unit_rows=3)).scored_now < 150
    assert pq.read_table(output)["path"].to_pylist() == listed
    assert len(proxy.requests) - before < 150


@pytest.mark.parametrize("closed", [1, 2, 3, 4])
def test_the_units_of_what_is_closed_fail_until_they_are_a_few(
    closed: int, uploaded: str, proxy: Proxy, tmp_path: Path
) -> None:
    good, listed = [f"{uploaded}/a/{index}.jpg" for index in (0, 2, 4)], list[str]()
    for number in range(20):
        listed += [*good[:2], f"{uploaded}/b/{number}.jpg" if number % 4 == 3 and number < 4 * closed else good[2]]
    (tmp_path / "l.txt").write_text("\n".join(listed))
    source, output = Source(list_file=str(tmp_path / "l.txt")), tmp_path / "o.parquet"
    proxy.fault = lambda method, path: "403" if "/b/" in path else None
    seen = list[int]()
    with pytest.raises(StoreError, match=r"/b/3.jpg: access denied"):
        score_dataset(source, output, mean_executor, Options(unit_rows=3), lambda progress: seen.append(progress.done))
    proxy.fault = lambda method, path: "404" if "/b/" in path else None
    done = score_dataset(source, output, mean_executor, Options(unit_rows=3))
    assert done.scored_now == 3 * closed if closed < FEW else 3 * FEW <= done.scored_now <= 3 * (20 - 8)
    assert pq.read_table(output)["path"].to_pylist() == listed
    assert max(seen) <= len(listed)


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 1000])
def test_several_processes_outlive_what_a_store_refuses(
    times: int, uploaded: str, proxy: Proxy, tmp_path: Path
) -> None:
    """A unit goes back, and at the third time the run ends; the processes go on all the while."""
    refused, output = list[str](), tmp_path / "o.parquet"

    def fault(method: str, path: str) -> str | None:
        if not path.endswith("/b/5.jpg") or len(refused) >= times:
            return None
        refused.append(path)
        return "403"

    proxy.fault = fault
    words = ("score", uploaded, "-o", output, "--devices", "cpu,cpu", "--unit-size", "3")
    done = invoke(*words)
    if times == 2:
        assert not isinstance(done.exception, RunError)
    else:
        assert isinstance(done.exception, RunError)
        assert "failed 3 times, at last: cannot read" in str(done.exception)
        proxy.fault = lambda method, path: None
        invoke(*words)
    assert pq.read_table(output)["status"].to_pylist().count("ok") == 10


def test_the_command_says_so_in_one_line(uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, bucket = tmp_path / "o.parquet", uploaded.split("/")[2]
    sign_in(monkeypatch, "admin", "another-secret")
    for given, said in (
        (uploaded, "access denied (403 Forbidden"),
        (uploaded.replace(bucket, "nowhere"), "there is no such bucket"),
    ):
        if "nowhere" in given:
            sign_in(monkeypatch, "admin", "s3cret-of-admin")
        done = invoke("score", given, "-o", output)
        assert isinstance(done.exception, RunError)
        assert said in str(done.exception)
        assert "secret" not in str(done.exception)
        assert "\n" not in str(done.exception)


def test_an_object_of_a_bucket_that_is_not_there_is_not_missing(proxy: Proxy) -> None:
    with pytest.raises(RunError, match="there is no such bucket"):
        ObjectStore().read("s3://nowhere/a.jpg")


@pytest.mark.parametrize(
    ("seconds", "moment"), [*((0.0, at) for at in range(1, 9)), *((2.0, at) for at in range(1, 5))]
)
def test_a_shard_that_is_replaced_meanwhile(
    seconds: float,
    moment: int,
    uploaded: str,
    crops: Path,
    store: Any,
    proxy: Proxy,
    score: Score,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rows are of one of the two, or say so: never bytes of the one by the index of the other."""
    monkeypatch.setattr(objects, "_FRESH_SECONDS", seconds)
    files = sorted(crops.rglob("*.jpg"))
    shard = tar(crops.parent / "t.tar", [(path.name, path.read_bytes()) for path in files])
    upload(store, shard)
    given = uploaded.removesuffix(crops.name) + "t.tar"
    expected = {row["path"]: row["score"] for row in score(given)}
    tar(shard, [(path.name, path.read_bytes()) for path in reversed(files)])
    forget()
    left = [len(proxy.requests) + moment]

    def replace(method: str, path: str) -> None:
        if left and len(proxy.requests) >= left[0]:
            left.clear()
            upload(store, shard)

    proxy.fault = replace
    for row in score(given, "q.parquet"):
        assert row["score"] in (expected.get(row["path"]), None)
    assert not left


def listed(tmp_path: Path, *urls: str) -> Source:
    (tmp_path / "web.txt").write_text("\n".join(urls))
    return Source(list_file=str(tmp_path / "web.txt"))


@pytest.fixture
def dead() -> Iterator[str]:
    """The address of a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_dead_web_server_costs_its_rows(dead: str, proxy: Proxy, uploaded: str, tmp_path: Path) -> None:
    good = f"{uploaded}/a/0.jpg"
    urls = [
        f"{dead}/a.jpg",
        good,
        "http://nowhere.invalid/b.jpg",
        f"{dead}/c.jpg?size=2",
        f"{proxy.endpoint}/crops/x.jpg",
    ]
    score_dataset(listed(tmp_path, *urls), tmp_path / "o.parquet", mean_executor)
    found = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["path"] for row in found] == urls
    assert [row["status"] for row in found] == ["unreadable", "ok", "unreadable", "unreadable", "unreadable"]
    assert ["does not answer" in (row["error"] or "") for row in found] == [True, False, True, True, False]
    assert found[-1]["error"].endswith("answers: 403 Forbidden, AccessDenied")


def test_a_web_server_that_answers_that_it_has_none_has_none(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = lambda method, path: "404"
    assert ObjectStore().read(f"{proxy.endpoint}/a.jpg").blob.outcome.status.value == "missing"  # type: ignore[union-attr]


def test_a_signed_address_of_a_dead_server_is_no_fault_of_the_image(dead: str, proxy: Proxy) -> None:
    with pytest.raises(StoreError, match=r"cannot read http://127\.0\.0\.1") as caught:
        ObjectStore().read(f"{dead}/a.jpg?X-Amz-Signature=0123")
    assert "0123" not in str(caught.value)


@pytest.mark.slow
def test_without_a_network_a_list_of_the_web_is_no_list_of_bad_images(proxy: Proxy, tmp_path: Path) -> None:
    urls = [f"http://{number}.invalid/a.jpg" for number in range(2 * clients.SILENT)]
    with pytest.raises(StoreError, match=f"as of the {clients.SILENT} web servers before it"):
        score_dataset(listed(tmp_path, *urls), tmp_path / "o.parquet", mean_executor)
    clients.WEB.forget()
    for index in range(3):
        urls.insert(15 * index, f"{proxy.endpoint}/crops/gone{index}.jpg")
    score_dataset(listed(tmp_path, *urls), tmp_path / "o.parquet", mean_executor, Options(restart=True))
    assert set(pq.read_table(tmp_path / "o.parquet")["status"].to_pylist()) == {"unreadable"}

"""The page: its figures against plain ones, hostile names, and how it behaves in a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fiqa_trt.analysis.report import BARS, survey, write_report
from fiqa_trt.cli import group
from fiqa_trt.curation.select import Amount, Rules, select
from fiqa_trt.errors import DifferentRun, InputError, OutputError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.groups import STEPS
from tests.helpers import Row, mean_executor, row, tar, write

EVIL = "<img src=x onerror=\"document.title='owned'\">.jpg"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """Scores of 5,000 images that do not exist, in 40 groups, some of them failures."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(5000):
        score = None if index % 50 == 7 else float(np.float32(rng.beta(2, 3)))
        other = None if score is None else float(np.float32(np.clip(score + rng.normal(0, 0.05), 0, 1)))
        made = row(f"d/{index % 40:02}/{index:05}.jpg", score, other)
        rows.append({**made, "width": int(rng.integers(10, 2000)), "height": int(rng.integers(10, 2000))})
    rows += [row("d/99/lost.jpg", None), row("d/00/exact.jpg", float(np.float32(0.169)))]
    return write(tmp_path_factory.mktemp("many") / "s.parquet", rows), rows


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", [row("d/a.jpg", 0.5), row("d/b.jpg", 0.6)])
    done = CliRunner().invoke(group, ["report", str(path), "-o", str(tmp_path / "r.html")], catch_exceptions=False)
    assert f"6 of 6 pictures cannot be read now, for one d/a.jpg, which is looked for in {os.getcwd()}\n" in done.output
    done = CliRunner().invoke(group, ["report", str(path), "-o", str(tmp_path / "n.html"), "--no-images"])
    assert "cannot be read" not in done.output


def test_control_characters_of_names_stay_out_of_the_page(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", [row("d/\x1b[31m\u202e.jpg", 0.5), row("d\x07/b.jpg", None)])
    write_report(tmp_path / "r.html", survey(path))
    page = (tmp_path / "r.html").read_text()
    assert r"d/\x1b[31m\u202e.jpg" in page
    assert not any(character in page for character in "\x1b\u202e\x07")


def test_scores_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a score of 1\.5, not from 0 to 1"):
        survey(write(tmp_path / "s.parquet", [row("a.jpg", 1.5), row("b.jpg", 0.5)]))


@pytest.mark.slow
def test_figures(many: tuple[Path, list[Row]]) -> None:
    path, rows = many
    found = survey(path, sheet=5)
    scores = np.array([r["score"] for r in rows if r["score"] is not None], np.float32)
    assert found.images == len(rows)
    assert found.scored == len(scores)
    assert sum(found.bars) == len(scores)
    assert len(found.bars) == BARS
    for step in (0, 1, 169, 300, 500, 999, STEPS):
        kept = select(path, Rules(min_score=step / STEPS)).kept
        assert found.scored - found.below[step] == kept, step
    assert found.below[169] == (scores < np.float32(0.169)).sum()
    assert (scores < found.threshold).mean() == pytest.approx(0.2, abs=0.01)
    assert found.quantiles["0.5"] == pytest.approx(np.median(scores), abs=1e-3)
    lowest = sorted((r["score"], r["path"]) for r in rows if r["score"] is not None)
    assert [t.path for t in found.sheets["The lowest scores"]] == [p for _, p in lowest[:5]]
    assert [t.path for t in found.sheets["The highest scores"]] == [p for _, p in lowest[:-6:-1]]
    around = found.sheets[f"Around {found.threshold:.3f}"]
    assert max(abs(t.value - found.threshold) for t in around) < 0.01
    a, b = (
        np.array([r[f"score_{n}"] for r in rows if r["score"] is not None])
        for n in ("mobilenet_v3_small", "shufflenet_v2_x1_0")
    )
    assert found.agreement["mean"] == pytest.approx(np.abs(a - b).mean(), abs=1e-3)
    assert found.agreement["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert found.group_count == 41
    assert found.groups[-1].mean is None
    assert [g.mean for g in found.groups[:-1]] == sorted(g.mean for g in found.groups[:-1] if g.mean is not None)
    first = next(g for g in found.groups if g.name == "d/07")
    mine = [r["score"] for r in rows if r["path"].startswith("d/07/")]
    good = [score for score in mine if score is not None]
    assert (first.images, first.failed) == (len(mine), len(mine) - len(good))
    assert first.mean == pytest.approx(np.mean(good), abs=1e-6)
    edges = [min(r["width"], r["height"]) for r in rows if r["score"] is not None]
    assert {r.label: r.images for r in found.resolutions}["256 to 383 px"] == sum(256 <= edge < 384 for edge in edges)
    assert len(found.failures) == 100


def test_files_that_say_little(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"path": ["a"], "score": pa.array([0.5], pa.float32()), "status": ["ok"]}), path)
    found = survey(path)
    assert (found.agreement, found.resolutions) == ({}, [])
    assert not found.sheets["The lowest scores"][0].data
    write(path, [row("a", None), row("b", None)])
    found = survey(path)
    write_report(tmp_path / "r.html", found)
    assert "Distribution" not in (tmp_path / "r.html").read_text()
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(InputError, match="has no rows"):
        survey(path)
    path.write_text("junk")
    with pytest.raises(InputError, match="cannot be read"):
        survey(path)


@pytest.fixture
def scored(crops: Path, tmp_path: Path) -> Path:
    """Real scores of real images, one with a hostile name and one out of a shard, and a failure of each kind."""
    (crops / EVIL).write_bytes((crops / "a" / "0.jpg").read_bytes())
    (crops / f"bad{EVIL}").write_bytes(b"x")
    tar(crops / "s.tar", [("x/1.jpg", (crops / "b" / "1.jpg").read_bytes())])
    score_dataset(Source((str(crops),)), tmp_path / "s.parquet", mean_executor, Options(command="fiqa-trt score <b>"))
    return tmp_path / "s.parquet"


def report(*arguments: object) -> str:
    done = CliRunner().invoke(group, ["report", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_other_formats(crops: Path, tmp_path: Path, suffix: str) -> None:
    (crops / "bad.jpg").write_bytes(b"x")
    found = []
    for name in ("s.parquet", f"s.{suffix}"):
        score_dataset(Source((str(crops),)), tmp_path / name, mean_executor)
        found.append(dataclasses.replace(survey(tmp_path / name), provenance={}))
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_command(scored: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert "13 images, 1 failed" in report(scored, "-o", page)
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 36
    assert "<img src=x" not in text
    assert "fiqa-trt score &lt;b&gt;" in text
    with pytest.raises(DifferentRun, match="exists already"):
        report(scored, "-o", page)
    report(scored, "-o", page, "--restart", "--no-images", "--threshold", 0.25)
    assert "base64" not in page.read_text()
    assert 'id="threshold">0.250<' in page.read_text()
    for wrong, message in ((tmp_path / "r.pdf", "name"), (tmp_path / "gone" / "r.html", "does not exist")):
        with pytest.raises(OutputError, match=message):
            report(scored, "-o", wrong)
    with pytest.raises(InputError, match="--group-by"):
        report(scored, "-o", page, "--restart", "--group-by", "nothing")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium, on the path or in $CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, scored: Path, tmp_path: Path, width: int, scheme: str) -> None:
    report(scored, "-o", tmp_path / "r.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems = list[str]()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda asked: problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
    )
    page.goto((tmp_path / "r.html").as_uri())
    assert page.title().startswith("Scores of")
    counts = []
    for step in (0, 300, 1000):
        page.locator("#slider").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", step
        )
        counts.append(int(page.locator("#count").inner_text()))
        assert counts[-1] == select(scored, Rules(min_score=step / STEPS)).kept
        assert page.locator("#command").inner_text() == f"{step / STEPS:.3f}"
    assert counts[0] == 12
    assert counts[2] == 0
    means = "() => [...document.querySelectorAll('#groups tbody tr')].map(row => Number(row.cells[3].textContent))"
    page.locator("#groups th button").nth(3).click()
    assert page.evaluate(means) == sorted(page.evaluate(means))
    page.locator("#groups th button").nth(3).click()
    assert page.evaluate(means) == sorted(page.evaluate(means), reverse=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 300) == (scheme == "dark")
    assert page.title() != "owned"
    assert not problems
    page.close()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """2,000 groups of 0 to 12 images with scores, of which the best means have not the best images."""
    rng, rows, by_group = np.random.default_rng(1), list[Row](), dict[str, list[float]]()
    for number in range(2000):
        name = f"/data/{number}"
        by_group[name] = [float(np.float32(rng.beta(2, 2))) for _ in range(int(rng.integers(13)))]
        rows += [row(f"{name}/{index}.jpg", score) for index, score in enumerate(by_group[name])]
        rows += [row(f"{name}/bad.jpg", None)] * (not by_group[name] or number % 9 == 0)
    return write(tmp_path_factory.mktemp("crowd") / "my scores.parquet", rows), by_group


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 333, 700, 999, STEPS])
def test_what_is_left_of_groups_is_what_filter_leaves(crowd: tuple[Path, dict[str, list[float]]], step: int) -> None:
    path, by_group = crowd
    found = survey(path, sheet=0)
    assert [group.name for group in found.groups if group.mean is None] == sorted(
        n for n, s in by_group.items() if not s
    )
    left = dict(zip([group.name for group in found.groups], found.runs.left(step), strict=True))
    assert left == {name: sum(np.float32(s) >= np.float32(step / STEPS) for s in by_group[name]) for name in by_group}
    chosen = select(path, Rules(min_score=step / STEPS, per_group=Amount(100)))
    assert (sorted(found.lost(step)), found.unscored) == (chosen.lost, chosen.unscored)
    assert sum(left.values()) == chosen.kept


@pytest.mark.slow
def test_many_images_are_told_in_coarser_steps(
    crowd: tuple[Path, dict[str, list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = survey(crowd[0], sheet=0)
    for most in (10_000, 3000):
        monkeypatch.setattr("fiqa_trt.scores.groups.MOST_RUNS", most)
        found = survey(crowd[0], sheet=0)
        unit = found.runs.unit
        assert unit > 1
        assert (len(found.runs.counts) <= most) or unit == STEPS
        assert found.groups == exact.groups
        for step in (0, 340, 347):
            assert list(found.runs.left(step)) == list(exact.runs.left(step // unit * unit))


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_all_groups_in_a_browser(
    browser: Any, crowd: tuple[Path, dict[str, list[float]]], tmp_path: Path, width: int
) -> None:
    path, by_group = crowd
    report(path, "-o", tmp_path / "r.html", "--threshold", 0.7)
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems = list[str]()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    kept = {n: sum(np.float32(s) >= np.float32(0.7) for s in scores) for n, scores in by_group.items()}
    lost = [name for name, scores in by_group.items() if scores and not kept[name]]

    def cells(column: int) -> list[str]:
        found = page.locator(f"#groups tbody tr td:nth-child({column + 1})").all_inner_texts()
        return [text.strip() for text in found]

    def press(column: int) -> str:
        page.locator("#groups th button").nth(column).click()
        sorts = [head.get_attribute("aria-sort") for head in page.locator("#groups th").all()]
        assert sum(sort != "none" for sort in sorts) == 1
        return str(sorts[column])

    assert page.locator("#lost-at").inner_text() == f"groups that lose everything: {len(lost)} of 2,000"
    assert press(5) == "ascending"
    assert press(5) == "descending"
    highest = sorted((max(scores) for scores in by_group.values() if scores), reverse=True)
    assert cells(5) == [f"{value:.3f}" for value in highest[:100]]
    press(6), press(6)
    assert cells(6) == [str(value) for value in sorted(kept.values(), reverse=True)[:100]]
    assert page.locator("#more").inner_text() == "Show 100 more"
    page.locator("#more").click()
    assert len(cells(0)) == 200
    page.locator("#only-lost").check()
    empty = [name for name, scores in by_group.items() if not scores]
    assert page.locator("#shown").inner_text() == f"100 of {len(lost) + len(empty)} shown, out of 2,000"
    assert set(cells(7)) == {"lost"}
    page.locator("#search").fill(empty[0])
    assert cells(7)[cells(0).index(empty[0].removeprefix("/data/"))] == "no score"
    assert f"{len(empty)} of them have no scored image" in page.locator("body").inner_text()
    page.locator("#search").fill("/DATA/19")
    assert press(0) == "ascending"
    wanted = [int(name.removeprefix("/data/")) for name in (*lost, *empty) if name.startswith("/data/19")]
    assert list(map(int, cells(0))) == sorted(wanted)[:100]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#search").fill("nobody")
    assert (cells(0), page.locator("#more").is_visible()) == ([], False)
    titles = page.locator("h2").all_inner_texts()
    assert titles.index("Groups") > titles.index("The highest scores")
    assert not problems
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_without_javascript_all_of_it_is_there(
    browser: Any, crowd: tuple[Path, dict[str, list[float]]], tmp_path: Path, width: int
) -> None:
    report(crowd[0], "-o", tmp_path / "r.html", "--threshold", 0.7)
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    kept = select(crowd[0], Rules(min_score=0.7)).kept
    assert page.locator("#count").inner_text() == f"{kept:,}"
    assert page.locator("#command").inner_text() == "0.700"
    assert page.locator("#lost-at").inner_text().startswith("groups that lose everything: ")
    rows = page.locator("noscript tbody tr")
    assert rows.count() == 500
    worst = min((np.mean(scores), name) for name, scores in crowd[1].items() if scores)
    assert rows.first.locator("td").all_inner_texts()[:4] == [
        worst[1].removeprefix("/data/"), *rows.first.locator("td").all_inner_texts()[1:3], f"{worst[0]:.3f}",
    ]  # fmt: skip
    assert not page.locator("#slider").is_visible()
    assert not page.locator("#search").is_visible()
    assert page.locator("noscript p").inner_text().startswith("The first 500; all of them")
    context.close()


@pytest.mark.slow
def test_groups_without_a_score_and_rows_of_no_group(tmp_path: Path) -> None:
    rows = [row("p1/a.jpg", 0.9), row("p2/a.jpg", None), row("p3/a.jpg", 0.1), row("stray.jpg", None)]
    path = write(tmp_path / "s.parquet", rows)
    found = survey(path, group_by=r"^(p\d)/")
    assert (found.group_count, found.unscored, found.lost(500)) == (3, ["p2"], ["p3"])
    said = CliRunner().invoke(group, ["report", str(path), "-o", str(tmp_path / "r.html"), "--json", "--no-images"])
    facts = json.loads(said.stdout)
    assert (facts["images"], facts["scored"], facts["unscored_groups"]) == (4, 2, ["", "p2"])
    assert "2 of 4 groups have no scored image" in said.stderr
    quiet = CliRunner().invoke(group, ["report", str(path), "-o", str(tmp_path / "q.html"), "-q", "--no-images"])
    assert (quiet.output, quiet.exit_code) == ("", 0)


@pytest.mark.slow
def test_the_command_can_be_copied_and_pasted(
    browser: Any, crowd: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    report(crowd[0], "-o", tmp_path / "r.html", "--threshold", 0.25, "--no-images")
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    page.locator("#copy").click()
    page.get_by_text("Copied").wait_for()
    line = page.evaluate("navigator.clipboard.readText()")
    assert shlex.split(line) == ["fiqa-trt", "filter", str(crowd[0]), "-o", "keep.txt", "--min-score", "0.250"]
    page.locator("#search").fill("/data/1999")
    page.locator("#copy-names").click()
    page.get_by_text("Copied").nth(1).wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "/data/1999\n"
    context.close()


@pytest.mark.slow
def test_a_large_file_makes_a_small_page(many: tuple[Path, list[Row]], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", survey(many[0]))
    text = (tmp_path / "r.html").read_text()
    assert len(text) < 200_000
    data = re.search(r'id="data">(.*?)</script>', text)
    assert data is not None
    assert len(json.loads(data[1])["below"]) == STEPS + 1

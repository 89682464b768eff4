"""Files appear whole, through links, with the permissions of what they replace, on lesser file systems as well."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from fiqa_trt.errors import OutputError, RunError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.state import RunFolder
from fiqa_trt.scores.files import SUFFIXES
from fiqa_trt.storage.writing import atomic, beside, check_output, lock
from tests.helpers import SMALL, Stop, mean_executor, rows, score, spoil, stop_after


def write(path: Path, text: str = "new") -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES])
def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.EPERM])
def test_folders_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", opened)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("of_folder", [True, False])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_no_such_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of_folder: bool
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folder:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "a").write_text("old")
    with pytest.raises(RunError):
        write(tmp_path / "a")
    assert names(tmp_path) == {"a"}


def test_links_are_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "one").write_text("old")
    links: dict[str, Path | str] = {
        "whole": folder / "one",
        "relative": "data/one",
        "of a link": "whole",
        "dangling": "data/two",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
        write(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (folder / ("two" if name == "dangling" else "one")).read_text() == name
    assert names(folder) == {"one", "two"}


def test_links_that_lead_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("other")
    (tmp_path / "other").symlink_to("loop")
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "nowhere").symlink_to("gone/file")
    os.mkfifo(tmp_path / "pipe")
    messages = {"loop": "leads back to itself", "folder": "leads to a folder", "device": "leads to a device or a pipe"}
    for name, message in {**messages, "pipe": "it is a device or a pipe"}.items():
        for attempt in (write, lambda path: check_output(path, ("",))):
            with pytest.raises(OutputError, match=rf"^cannot write .*/{name}: .*{message}"):
                attempt(tmp_path / name)
    with pytest.raises(OutputError, match=r"it is a link to .*/gone/file, and the folder .*/gone does not exist"):
        check_output(tmp_path / "nowhere", ("",))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_two_runs_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic(path) as temporary:
        temporary.write_text("first")
        with pytest.raises(OutputError, match=f"another run is writing {path} at this moment"):
            write(path, "second")
        assert temporary.read_text() == "first"
    assert path.read_text() == "first"
    assert names(tmp_path) == {"a"}


def test_a_run_that_begins_while_another_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real, other = tmp_path / "s.parquet", lock, list[RunFolder]()

    def late(descriptor: int, path: Path) -> None:
        if other:
            other.pop().remove()
        real(descriptor, path)

    monkeypatch.setattr("fiqa_trt.runs.state.lock", late)
    other.append(RunFolder(output, 8))
    with RunFolder(output, 8) as second:
        assert (second.path / "parts").is_dir()
        with pytest.raises(OutputError, match="another run is writing"), RunFolder(output, 8):
            pass


def test_what_a_killed_run_has_left_is_replaced(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as temporary:
        pass
    for leave in (lambda: temporary.write_text("half"), lambda: temporary.symlink_to(tmp_path / "a")):
        leave()
        write(tmp_path / "a")
        assert (tmp_path / "a").read_text() == "new"
        assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("mode", [0o664, 0o600, 0o444, 0o755])
def test_permissions_are_kept(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    before = (tmp_path / "a").stat()
    with atomic(tmp_path / "a") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) & 0o077 == mode & 0o077  # not even for a moment readable by more
        temporary.write_text("new")
    after = (tmp_path / "a").stat()
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (mode, before.st_uid, before.st_gid)
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.chown(tmp_path / "a", 1234, 2345)
    write(tmp_path / "a")
    after = (tmp_path / "a").stat()
    assert (after.st_uid, after.st_gid) == (1234, 2345)


def test_an_owner_that_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fchown", refused)
    monkeypatch.setattr(os, "fchmod", refused)  # FAT and some network file systems
    write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


def test_a_new_file_honours_the_umask(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            write(tmp_path / f"{mask}")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask}").stat().st_mode) == 0o666 & ~mask


def test_other_hard_links_keep_what_they_had(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "backup")
    write(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), (tmp_path / "backup").read_text()) == ("new", "old")


def test_what_an_earlier_call_left(tmp_path: Path) -> None:
    """A temporary file of a call that was killed, or a link in its place, is not written through."""
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / ".a.tmp").symlink_to("elsewhere")
    write(tmp_path / "a")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert names(tmp_path) == {"a", "elsewhere"}


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250, "\u00e9" * 127, "x" * 246])
def test_long_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert names(tmp_path) == {name}
    for suffix in (".partial", ".training"):
        other = beside(tmp_path / name, suffix)
        assert other.name.endswith(suffix)
        assert len(os.fsencode(other.name)) <= 255
    with pytest.raises(OutputError, match="File name too long"):
        check_output(tmp_path / (256 * "x" + ".csv"), SUFFIXES)


def test_an_output_with_a_long_name(crops: Path, tmp_path: Path) -> None:
    output = tmp_path / ("x" * 247 + ".parquet")
    with pytest.raises(Stop):
        score(crops, output, report=stop_after(5))
    assert score(crops, output).scored_now < 10
    assert names(tmp_path) == {"crops", output.name}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_an_output_that_is_a_link(crops: Path, tmp_path: Path, suffix: str) -> None:
    spoil(crops)
    (tmp_path / "runs").mkdir()
    output, target = tmp_path / f"latest.{suffix}", tmp_path / "runs" / "one"
    output.symlink_to("runs/one")
    with pytest.raises(Stop):
        score(crops, output, report=stop_after(9))
    assert names(tmp_path / "runs") == {"one.partial"}  # one for all names of the output
    with RunFolder(target, 4), pytest.raises(OutputError, match="another run is writing"):
        score(crops, output)
    assert score(crops, output).scored_now < 14
    target.chmod(0o664)
    (crops / "a" / "1.jpg").write_bytes((crops / "a" / "0.jpg").read_bytes())
    assert retry_failed(output, mean_executor, SMALL).failed == 3
    assert (output.is_symlink(), names(tmp_path / "runs")) == (True, {"one"})
    assert stat.S_IMODE(target.stat().st_mode) == 0o664
    assert sum(row["status"] == "ok" for row in rows(output)) == 11
    assert score(crops, output).scored_now == 0  # found complete


def test_an_output_in_the_folder_that_is_scored(crops: Path, tmp_path: Path) -> None:
    """Neither the link nor what it leads to is an input, even if every file is."""
    (crops / "results").mkdir()
    (crops / "s.parquet").symlink_to("results/s.parquet")
    source = Source((str(crops),), all_files=True)
    with pytest.raises(Stop):
        score_dataset(source, crops / "s.parquet", mean_executor, SMALL, stop_after(5))
    assert score_dataset(source, crops / "s.parquet", mean_executor, SMALL).images == 10
    assert score_dataset(source, crops / "s.parquet", mean_executor, SMALL).images == 10

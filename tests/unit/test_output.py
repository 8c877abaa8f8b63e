import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepen.errors import OutputError, ResourceError, StorageError
from deepen.output import (
    check_disk,
    check_target,
    new_file,
    new_folder,
    partial_path,
    resumable_file,
    storage_errors,
    write_file,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start(code: str, *arguments: Path) -> subprocess.Popen[str]:
    """Run code in a process of its own and wait until it says it is ready."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


HALF_A_FOLDER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
from pathlib import Path
from deepen.output import new_folder
with new_folder(sys.argv[1], resume=len(sys.argv) > 2) as folder:
    (folder / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert names(out.parent) == {"out"}


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with new_file(tmp_path / "out.gguf") as file:
        file.write_bytes(b"1")
        assert names(tmp_path) == {".out.gguf.partial"}
    assert names(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize("make", [new_folder, new_file])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, make, error: type[BaseException]) -> None:
    with pytest.raises(error), make(tmp_path / "out"):
        raise error
    assert names(tmp_path) == set()


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_an_existing_output_is_refused_and_untouched(tmp_path: Path, make) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(OutputError, match="exists already"), make(tmp_path / "out"):
        pytest.fail("the work must not begin")
    assert (tmp_path / "out").read_text() == "old"


def test_overwrite_replaces_at_the_end_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError, match="failed"), new_folder(out, overwrite=True):
        raise ValueError("failed")
    assert names(out) == {"old"}
    with new_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert names(out) == {"old"}
    assert names(out) == {"new"}
    assert names(tmp_path) == {"out"}


def test_overwrite_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with new_file(tmp_path / "out", overwrite=True) as file:
        file.write_text("new")
    assert (tmp_path / "out").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_overwrite_of_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="exists already"), new_folder(tmp_path / "out"):
        pytest.fail("the work must not begin")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def test_a_dangling_link_is_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"):
        check_target(tmp_path / "out")


def test_overwrite_never_removes_the_folder_one_is_in_or_the_home(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for out in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "home"):
        with pytest.raises(OutputError, match="would remove the folder you are in"):
            check_target(out, overwrite=True)


@pytest.mark.parametrize("out", [".", "..", "/", "some/.."])
def test_a_target_needs_a_name(out: str) -> None:
    with pytest.raises(OutputError, match="needs a name of its own"):
        check_target(out)


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        check_target(tmp_path / "file" / "out")


def test_a_name_longer_than_the_file_system_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / ("x" * 250)):
        pytest.fail("the work must not begin")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_target(tmp_path / "out")


def test_a_read_only_mount_is_refused_even_for_root() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    read_only = [mount[1] for mount in mounts if "ro" in mount[3].split(",") and Path(mount[1]).is_dir()]
    if not read_only:
        pytest.skip("nothing is mounted read-only here")
    with pytest.raises(OutputError, match="cannot be written"):
        check_target(Path(read_only[0]) / "out")


def test_two_runs_for_one_target_do_not_collide(tmp_path: Path) -> None:
    other = start(HALF_A_FOLDER, tmp_path / "out")
    try:
        with pytest.raises(OutputError, match="another run is writing this output"), new_folder(tmp_path / "out"):
            pytest.fail("the work must not begin")
        with (
            pytest.raises(OutputError, match="another run is writing this output"),
            new_folder(tmp_path / "out", resume=True),
        ):
            pytest.fail("the work must not begin")
        assert (partial_path(tmp_path / "out") / "a").read_text() == "half"
    finally:
        other.kill()
        other.communicate()


def test_a_killed_run_leaves_no_output_and_the_next_one_works(tmp_path: Path) -> None:
    killed = start(HALF_A_FOLDER, tmp_path / "out")
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as folder:
        assert names(folder) == set()
        (folder / "b").write_text("whole")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"b"}


def test_an_interrupted_run_that_can_resume_finds_its_work_again(tmp_path: Path) -> None:
    killed = start(HALF_A_FOLDER, tmp_path / "out", Path("resume"))
    killed.send_signal(signal.SIGINT)
    killed.communicate()
    with new_folder(tmp_path / "out", resume=True) as folder:
        assert (folder / "a").read_text() == "half"
    assert names(tmp_path) == {"out"}


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputError, match="device"):
            check_target(out, overwrite=True)


def test_a_file_made_in_several_runs_appears_complete(tmp_path: Path) -> None:
    out = tmp_path / "complete"
    with pytest.raises(ValueError, match="early"), resumable_file(out) as folder:
        raise ValueError("early")
    assert names(tmp_path) == set()
    for run in range(2):
        with pytest.raises(FileNotFoundError), resumable_file(out) as folder:
            (folder / str(run)).write_text("half")
    assert names(tmp_path) == {".complete.partial"}
    with resumable_file(out) as folder:
        assert names(folder) == {"0", "1"}
        with pytest.raises(OutputError, match="another run"), resumable_file(out):
            pass
        (folder / "complete").write_text("new")
    assert names(tmp_path) == {"complete"}
    with pytest.raises(OutputError, match="exists"), resumable_file(out):
        pass
    with resumable_file(out, overwrite=True) as folder:
        assert out.read_text() == "new"
        (folder / "complete").write_text("newer")
    assert (names(tmp_path), out.read_text()) == ({"complete"}, "newer")


def test_a_partial_that_is_not_a_folder_does_not_stop_a_resume(tmp_path: Path) -> None:
    partial_path(tmp_path / "out").symlink_to(tmp_path)
    with new_folder(tmp_path / "out", resume=True) as folder:
        assert not folder.is_symlink()
    assert names(tmp_path) == {"out"}


def test_a_crash_between_the_two_renames_of_an_overwrite_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "a").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        check_target(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "a").write_text("keep")
    with pytest.raises(OutputError, match="appeared while this run"), new_folder(tmp_path / "out"):
        theirs.rename(tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"a"}


def test_a_full_disk_is_the_machines_failure_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="the disk is full"), new_folder(tmp_path / "out") as folder:
            (folder / "a").write_bytes(bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == set()


def test_too_little_disk_is_refused_beforehand(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet" / "there", 1000)
    with pytest.raises(ResourceError, match="the output needs 1010 PB"):
        check_disk(tmp_path / "out", 10**18)


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), storage_errors(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", "/elsewhere/model.safetensors")
    with pytest.raises(OutputError), storage_errors(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".out.partial" / "a"))


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", "old")
    write_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert names(tmp_path) == {"a.json"}

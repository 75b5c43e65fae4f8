"""Files and folders appear whole, and one run at a time writes to a place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tamp_modifier.files import (
    UNFINISHED,
    check_output,
    new_folder,
    only_writer,
    whole_file,
    write_json,
)

HOLD = """
import sys, time
from pathlib import Path
from tamp_modifier.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that writes to ``out``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_while_the_first_lives(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    try:
        with pytest.raises(OSError, match=f"process {holder.pid} is writing it"):
            with only_writer(tmp_path / "out"):
                pass
    finally:
        holder.kill()
        holder.wait()
    with only_writer(tmp_path / "out"):  # the dead one's lock is taken over
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_new_folders_of_one_name_do_not_touch_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as first:
        (first / "weights").write_text("whole")
        with pytest.raises(OSError, match=f"process {os.getpid()} is writing it"):
            with new_folder(out):
                pass
        assert (first / "weights").read_text() == "whole"
    assert (out / "weights").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_whole_or_absent_and_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write_text("half")
        raise KeyError
    assert not path.exists()
    before = os.umask(0o027)
    try:
        write_json(path, {"a": [1, 2]})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text() == '{\n "a": [ 1, 2 ]\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_folder_of_something_else_is_never_removed(tmp_path: Path) -> None:
    out = tmp_path / "model"
    other = tmp_path / "model.tmp"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"model\.tmp is in the way and is not ours"):
        with new_folder(out):
            pass
    assert (other / "thesis.txt").read_text() == "mine" and not out.exists()


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "model.tmp"
    left.mkdir()
    (left / UNFINISHED).touch()
    (left / "half").touch()
    with new_folder(tmp_path / "model") as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]
    assert not left.exists()


def test_a_link_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ValueError, match="link is a link; give the folder that it leads to"):
        check_output(tmp_path / "link")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_asks_for(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as folder:
            save_file({"a": torch.ones(2)}, folder / "model.safetensors")  # for its owner alone
            (folder / "deep").mkdir()
            (folder / "deep" / "run.sh").write_text("")
            (folder / "deep" / "run.sh").chmod(0o700)
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    plain, executable = 0o666 & ~umask, 0o777 & ~umask
    assert found == {
        "out": executable,
        "deep": executable,
        "run.sh": executable,
        "model.safetensors": plain,
        "a.json": plain,
    }

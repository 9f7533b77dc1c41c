"""Small files are whole or not there: under kills, full disks and many writers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from mounts import fill, small_disk

from pipelines.files import append_line, disk_full, new_folder, replaced, write_text
from uml_core.errors import UserError


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replaced(path) as scratch:
        scratch.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]
    write_text(path, "neu: é")
    assert path.read_bytes() == "neu: é".encode() and os.listdir(tmp_path) == ["result.json"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pipelines.files import replaced\n"
        "with replaced(sys.argv[1]) as scratch:\n"
        "    scratch.write_text('half of the n'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"


def add_lines(path, name):
    for number in range(300):
        append_line(path, f"{name}{number} " + "x" * 5000)


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_lines, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = path.read_text().splitlines()
    assert len(lines) == 900 and all(len(line.split(" ")[1]) == 5000 for line in lines)
    for name in "abc":
        mine = [line.split(" ")[0] for line in lines if line.startswith(name)]
        assert mine == [f"{name}{number}" for number in range(300)]


def test_a_torn_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"step": 1}\n{"ste')
    append_line(path, '{"step": 2}')
    assert path.read_text().splitlines() == ['{"step": 1}', '{"ste', '{"step": 2}']


def test_a_full_disk_takes_no_part_of_a_line_or_file(tmp_path):
    with small_disk(tmp_path / "small", "256k") as folder:
        lines, result = folder / "lines", folder / "result.json"
        append_line(lines, "first")
        write_text(result, "old")
        ballast = fill(folder, leave=8192)
        with pytest.raises(OSError) as full:
            append_line(lines, "x" * 20_000)
        assert disk_full(full.value) and lines.read_text() == "first\n"
        with pytest.raises(OSError) as full:
            write_text(result, "x" * 20_000)
        assert disk_full(full.value) and result.read_text() == "old"
        ballast.unlink()
        append_line(lines, "second")
        assert lines.read_text() == "first\nsecond\n" and len(os.listdir(folder)) == 2


def test_a_full_disk_is_known_whatever_wraps_it():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    wrapped = ValueError("could not save")
    wrapped.__cause__ = full
    assert disk_full(full) and disk_full(wrapped)
    assert disk_full(OSError(errno.EDQUOT, "quota"))
    assert disk_full(RuntimeError("writer failed: No space left on device"))
    assert not disk_full(OSError(errno.EACCES, "no")) and not disk_full(ValueError("x"))


def test_where_results_cannot_go_is_said_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    for place, word in {
        str(tmp_path / "file"): "Not a directory",
        str(tmp_path / "file" / "x"): "Not a directory",
        "/proc/x/y": "No such file",
        str(tmp_path / ("n" * 300)): "too long",
        "s3://bucket/x": "give a path",
        "file://host/x": "no other machine",
    }.items():
        with pytest.raises(UserError, match=word):
            new_folder(place)
    assert new_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert new_folder(f"file://{tmp_path}/c") == tmp_path / "c"
    assert os.listdir(tmp_path) == ["file"]

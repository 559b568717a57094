"""A worker's name: stable, held by one process, taken over when that process dies."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.protocol import limits
from zq.protocol.job import valid_name
from zq.workers.identity import NameRefused, default_names, lock_file_name, take_name
from zq.workers.sweep import own_marker, parse_marker


@pytest.fixture
def host() -> str:
    """A host name of this test's own: names are unique on the machine, and tests run at the same time."""
    return f"test-{uuid.uuid4().hex}"


def test_each_worker_takes_the_first_free_number(tmp_path: Path, host: str) -> None:
    with take_name(tmp_path, ["合并", "b"], hostname=host) as first:
        assert first.instance == f"{host}:合并+b:1"
        with take_name(tmp_path, ["合并", "b"], hostname=host) as second:
            assert second.instance == f"{host}:合并+b:2"
            assert second.incarnation != first.incarnation
        with take_name(tmp_path, ["合并", "b"], hostname=host) as third:
            assert third.instance == second.instance


def test_two_systems_on_one_machine_do_not_share_a_name(tmp_path: Path, host: str) -> None:
    with take_name(tmp_path / "a", ["q"], hostname=host), take_name(tmp_path / "b", ["q"], hostname=host) as other:
        assert other.instance == f"{host}:q:2"


def test_a_given_name_is_held_by_one_process(tmp_path: Path, host: str) -> None:
    with take_name(tmp_path, ["q"], host), pytest.raises(NameRefused, match="another --name"):
        take_name(tmp_path, ["other"], host)
    take_name(tmp_path, ["q"], host).release()


def test_a_killed_worker_leaves_its_name_free(tmp_path: Path, host: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from zq.workers.identity import take_name\n"
        "print(take_name(Path(sys.argv[1]), ['q'], hostname=sys.argv[2]).instance, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), host]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == f"{host}:q:1"
        with take_name(tmp_path, ["q"], hostname=host) as second:
            assert second.instance == f"{host}:q:2"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with take_name(tmp_path, ["q"], hostname=host) as again:
        assert again.instance == f"{host}:q:1"


@pytest.mark.parametrize("name", ["a b", "a/b", "a\nb", "x" * (limits.NAME_CHARS_MAX + 1)])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NameRefused, match="worker name"):
        take_name(tmp_path, ["q"], name)


def test_a_data_dir_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NameRefused, match="data_dir"):
        take_name(tmp_path / "file", ["q"])


@given(hostname=st.text(), queues=st.lists(st.text(min_size=1).filter(valid_name), min_size=1, max_size=64))
def test_default_names_are_names_a_marker_and_a_file(hostname: str, queues: list[str]) -> None:
    names = list(itertools.islice(default_names(hostname, queues), 3))
    assert len(set(names)) == 3
    for name in names:
        assert valid_name(name)
        assert len(os.fsencode(lock_file_name(name))) <= 255
        marker = own_marker(name, 1)
        assert parse_marker(marker.format()) == marker


def test_long_names_stay_apart_in_the_file_system() -> None:
    long = "字" * 190
    assert lock_file_name(long + "a") != lock_file_name(long + "b")

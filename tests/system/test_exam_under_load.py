"""A whole system under a short exam of many students: no error, nothing lost, everything accounted for."""

from __future__ import annotations

import json

import pytest

from tests.control.test_control import System, running


@pytest.mark.long
def test_an_exam_of_many_students_loses_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Not in a folder with the name of the test: the socket of supervisord that lies in it has at most 107 bytes.
    with running(System(tmp_path_factory.mktemp("负载"))) as system:
        run = system.zq(
            "exam", "load", "--students", "300", "--minutes", "0.5", "--heartbeat-s", "2", "--segment-s", "6",
            "--segment-kib", "300", "--exits", "20", "--login-s", "3", "--wait-s", "60", "--json",
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        found = json.loads(run.stdout)
        assert found["errors"] == 0
        assert found["calls"]["heartbeat"]["calls"] > 3000
        assert found["segments"]["found"] == found["segments"]["acknowledged"] > 1000
        assert (found["merges"]["done"], found["merges"]["open"]) == (20, 0)
        assert found["unaccounted_jobs"] == 0
        assert system.zq("audit").returncode == 0

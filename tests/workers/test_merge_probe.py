"""The probe: what it says of real recordings, and that hostile bytes and hostile answers end in one of its errors."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.context import ProcessResult
from zq.workers.probe import BadFile, Probe, ProbeFailed, _Answers, probe

MEDIA = Path(__file__).parents[1] / "media"


class Runner:
    """Runs the child for real, or ends as told."""

    def __init__(self, ends: ProcessResult | None = None, says: tuple[str, ...] = ()) -> None:
        self.ends = ends
        self.says = says

    def run_process(
        self, argv: list[str], *, on_stdout_line: Callable[[str], None], cwd: Path, env: dict[str, str], **rest: Any
    ) -> ProcessResult:
        for line in self.says:
            on_stdout_line(line)
        if self.ends is not None:
            return self.ends
        ended = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        for line in ended.stdout.splitlines():
            on_stdout_line(line)
        return ProcessResult(ended.returncode, ended.stderr[-8192:])


def probed(folder: Path, names: list[str], runner: Runner | None = None) -> Probe:
    return probe(runner or Runner(), folder, names, 10**6)  # type: ignore[arg-type]


def put(folder: Path, stored: str, name: str) -> str:
    shutil.copyfile(MEDIA / stored, folder / name)
    return name


def test_counts_hashes_and_times(tmp_path: Path) -> None:
    names = [put(tmp_path, f"restart-vp8-opus/0000{n}.webm", f"r0000{n}.webm") for n in range(5)]
    done: list[int] = []
    found = probe(Runner(), tmp_path, names, 10**6, done.append)  # type: ignore[arg-type]
    assert done == [1, 2, 3, 4, 5]
    assert [f.streams[0].packets for f in found.files] == [21] * 5
    assert [f.streams[1].packets for f in found.files] == [33] * 5
    assert all(s.rising for f in found.files for s in f.streams)
    assert len(set(found.payload_hash)) == 2
    swapped = probed(tmp_path, [names[1], names[0], *names[2:]])
    assert swapped.payload_hash != found.payload_hash
    video = found.files[0].of_type("video")
    assert video is not None
    assert (video.width_px, video.height_px, video.codec) == (240, 180, "vp8")


def test_sound_before_zero_and_frames_out_of_order(tmp_path: Path) -> None:
    found = probed(tmp_path, [put(tmp_path, "mp4-uniform/00000.mp4", "r00000.mp4")]).files[0]
    assert found.first_s == pytest.approx(-0.0232, abs=0.0001)
    assert found.end_s == pytest.approx(2.0)
    assert all(s.rising for s in found.streams)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("bad/garbage.webm", "r00001.webm"),
        ("bad/truncated.mp4", "r00001.mp4"),
        ("bad/text.mp4", "r00001.mp4"),
        ("bad/zero.webm", "r00001.webm"),
        ("mp4-uniform/00000.mp4", "r00001.webm"),  # the demuxer is forced, never guessed
        ("ts-vp8-opus/00001.webm", "r00001.webm"),
    ],
)
def test_the_file_that_cannot_be_read_is_named(tmp_path: Path, stored: str, name: str) -> None:
    first = put(tmp_path, "mp4-uniform/00000.mp4", "r00000.mp4")
    with pytest.raises(BadFile) as bad:
        probed(tmp_path, [first, put(tmp_path, stored, name), first])
    assert bad.value.index == 1
    assert bad.value.refused("x").reason == "bad_segment"


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "r00000.webm").write_text(f"#EXTM3U\n#EXTINF:2,\n{MEDIA / 'mp4-uniform' / '00000.mp4'}\n")
    with pytest.raises(BadFile):
        probed(tmp_path, ["r00000.webm"])


@pytest.mark.parametrize("seed", range(6))
def test_damaged_recordings_end_in_an_answer(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    stored = chance.choice(["mp4-uniform/00001.mp4", "restart-vp8-opus/00001.webm"])
    name = "r00000" + Path(stored).suffix
    content = bytearray((MEDIA / stored).read_bytes())
    for _ in range(chance.choice([1, 20, 300])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(BadFile):
        assert probed(tmp_path, [name]).files[0].name == name


@pytest.mark.parametrize("name", ["x.webm", "../r00000.webm", "r00000.webm\nmov /etc/passwd", "r0.ts", "-r00000.webm"])
def test_only_names_of_our_own_making(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="own making"):
        probed(tmp_path, [name])


GOOD = '{"name":"r00000.webm","streams":[]}'
TOTALS = '{"totals":{}}'


@pytest.mark.parametrize(
    ("ends", "says", "error"),
    [
        (ProcessResult(-11, ""), (), BadFile),  # the child's own crash: the file it was reading is at fault
        (ProcessResult(-9, ""), (), ProbeFailed),  # ended by somebody else: says nothing of the file
        (ProcessResult(1, "no module named av"), (), ProbeFailed),
        (ProcessResult(0, ""), (GOOD,), ProbeFailed),
        (ProcessResult(0, ""), (TOTALS,), ProbeFailed),
        (ProcessResult(0, ""), (GOOD, TOTALS, GOOD), ProbeFailed),
        (ProcessResult(0, ""), ('{"name":"r00001.webm"}',), ProbeFailed),
        (ProcessResult(0, ""), ("x" * 40_000,), ProbeFailed),
        (ProcessResult(0, ""), ('{"name":"r00000.webm","error":"broken"}',), BadFile),
        (ProcessResult(0, ""), (GOOD, '{"totals":{"video":"zz"}}'), ProbeFailed),
    ],
)
def test_how_a_child_may_end(
    tmp_path: Path, ends: ProcessResult, says: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        probed(tmp_path, ["r00000.webm"], Runner(ends, says))
    assert probed(tmp_path, ["r00000.webm"], Runner(ProcessResult(0, ""), (GOOD, TOTALS))).files[0].streams == ()


@given(st.lists(st.text() | st.sampled_from([GOOD, TOTALS, "[]", "{}", "\ud800", '{"name":1}'])))
def test_any_answer_is_taken(lines: list[str]) -> None:
    answers = _Answers(["r00000.webm"], lambda done: None)
    for line in lines:
        answers.feed(line)
    assert answers.problem is None or isinstance(answers.problem, BadFile | ProbeFailed)

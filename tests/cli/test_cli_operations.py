"""What an operator does from the command line, against a real broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from click.testing import CliRunner, Result

from tests.conftest import LiveBroker
from zq import Client, JobRequest, cli, cli_dead, cli_jobs
from zq.client.link import ClientContext, open_socket
from zq.protocol import codec, messages
from zq.protocol.job import Outcome, State, decode_spec


@pytest.fixture
def address(live_broker: LiveBroker) -> str:
    return live_broker.address


@pytest.fixture
def client(live_broker: LiveBroker) -> Iterator[Client]:
    with Client(live_broker.config, role="admin") as client:
        yield client


def zq(*words: str, broker: str | None = None, **more: Any) -> Result:
    env = {"ZQ_CLIENT_BROKER": broker} if broker is not None else {}
    return CliRunner(env=env).invoke(cli.main, list(words), **more)


def good(*words: str, broker: str) -> str:
    result = zq(*words, broker=broker)
    assert result.exit_code == 0, result.output
    return result.stdout


def die(client: Client, requests: list[JobRequest], error: str = "ValueError: 文件不见了") -> None:
    """Have these jobs end dead, rejected by a worker that is played here."""
    client.submit_many(requests)
    queues = [messages.QueueSlots(name, 4000) for name in {request.queue for request in requests}]
    link = client._link
    context = ClientContext()
    sock = open_socket(context, link)
    sock.setsockopt(zmq.RCVTIMEO, 20_000)  #, so that a test that is wrong ends
    try:
        sock.send(codec.encode(messages.Hello(1, 1, messages.Role.WORKER, "player", os.urandom(16), queues)))
        welcome = codec.decode_from_broker(sock.recv())
        assert isinstance(welcome, messages.Welcome)
        sock.send(codec.encode(messages.Resume(welcome.session, [])))
        sock.send(codec.encode(messages.Credit(welcome.session, queues)))
        ended = 0
        while ended < len(requests):
            message = codec.decode_from_broker(sock.recv())
            if isinstance(message, messages.Dispatch):
                results = [
                    messages.Result(lease.job_id, lease.attempt, lease.token, Outcome.REJECTED, error=error)
                    for lease in message.leases
                ]
                sock.send(codec.encode(messages.Ack(welcome.session, results)))
            elif isinstance(message, messages.Acked):
                ended += len(message.accepted)
        sock.send(codec.encode(messages.Bye(welcome.session)))
    finally:
        sock.close(linger=500)
        context.term()


def requests(count: int, queue: str = "合并", task: str = "m.f") -> list[JobRequest]:
    return [
        JobRequest(task=task, queue=queue, args=(f"{n}.webm",), kwargs={"student": str(n % 10), "n": n})
        for n in range(count)
    ]


def test_why_and_show_say_what_holds_a_job(address: str) -> None:
    job_id = good(
        "submit", "m.f", "--queue", "q", "--tag", "gpu", "--tag", "disk=甲", "--concurrency-key", "许可",
        "--concurrency-limit", "2", "--key", "k", "--key-policy", "replace", broker=address,
    ).strip()  # fmt: skip
    why = json.loads(good("why", job_id, "--json", broker=address))
    assert (why["id"], why["reason"], why["holders"]) == (job_id, "no_consumer", [])
    assert good("why", job_id, broker=address).startswith("no_consumer: no worker serves queue 'q'")
    shown = json.loads(good("show", job_id, "--json", broker=address))
    assert shown["tags"] == ["disk=甲", "gpu"]
    assert (shown["concurrency_key"], shown["concurrency_limit"]) == ("许可", 2)
    assert (shown["key"], shown["key_policy"], shown["why"]["reason"]) == ("k", "replace", "no_consumer")
    assert [step["event"] for step in shown["history"]] == ["accept"]
    text = good("show", job_id, broker=address)
    assert "why        no_consumer" in text
    for said in ("tags       disk=甲 gpu", "at once    2 with key 许可", "(replace)", "accept → ready"):
        assert said in text
    later = good("submit", "m.f", "--queue", "q", "--delay", "60", "--expires", "99", broker=address).strip()
    assert "not_due" in good("why", later, broker=address)
    good("cancel", job_id, broker=address)
    ended = json.loads(good("show", job_id, "--json", broker=address))
    assert (ended["why"], [step["event"] for step in ended["history"]]) == (None, ["accept", "cancel"])
    assert zq("why", "0" * 32, broker=address).exit_code == cli.EXIT_REFUSED


def test_what_a_job_needs_is_submitted_and_shown(address: str) -> None:
    job_id = good(
        "submit", "m.f", "--queue", "q", "--disk-bytes", str(3 << 30), "--memory-bytes", "1048576",
        "--memory-limit-bytes", "2097152", "--stall-after", "90", broker=address,
    ).strip()  # fmt: skip
    shown = json.loads(good("show", job_id, "--json", broker=address))
    asked = {name: shown[name] for name in ("disk_bytes", "memory_bytes", "memory_limit_bytes", "stall_after_s")}
    assert asked == {
        "disk_bytes": 3 << 30, "memory_bytes": 1 << 20, "memory_limit_bytes": 2 << 20, "stall_after_s": 90.0,
    }  # fmt: skip
    assert (shown["stalled"], shown["quiet_s"]) == (False, 0.0)
    assert "needs      3.0 GiB of disk, 1.0 MiB of memory" in good("show", job_id, broker=address)
    assert zq("submit", "m.f", "--queue", "q", "--disk-bytes", "-1", broker=address).exit_code != 0


def test_a_queue_is_paused_limited_and_let_go(address: str, client: Client) -> None:
    client.submit("m.f", queue="q")
    assert good("pause", "q", broker=address) == "q: paused\n"
    assert good("limit", "q", "--rate", "2.5", "--running", "3", broker=address) == "q: paused, 2.5/s, 3 at once\n"
    assert good("limit", "q", "--length", "9", broker=address) == "q: paused, 2.5/s, 3 at once, 9 waiting\n"
    assert "paused, 2.5/s, 3 at once, 9 waiting" in good("len", broker=address)
    assert json.loads(good("limit", "q", "--json", broker=address))["length_max"] == 9
    assert good("resume", "q", broker=address) == "q: 2.5/s, 3 at once, 9 waiting\n"
    none = good("limit", "q", "--rate", "0", "--running", "0", "--length", "0", broker=address)
    assert none == good("limit", "q", broker=address) == "q: no limits\n"
    assert good("pause", "video_merge", broker=address) == "video_merge: paused\n"  # configured, and had no job yet


def test_a_mistyped_queue_gets_no_settings(address: str, client: Client) -> None:
    client.submit("m.f", queue="合并")
    for words in (["pause", "合幷"], ["resume", "x"], ["limit", "x", "--rate", "1"], ["dead", "ls", "--queue", "x"]):
        result = zq(*words, broker=address)
        assert result.exit_code == cli.EXIT_USAGE
        assert "合并" in result.stderr
    assert [queue.name for queue in client.queues()] == ["合并"]
    wrong = zq("limit", "合并", "--rate", "-1", broker=address)
    assert wrong.exit_code == cli.EXIT_USAGE
    assert "jobs a second" in wrong.stderr


def test_dead_jobs_are_listed_by_filter(address: str, client: Client) -> None:
    die(client, requests(30))
    die(client, requests(5, "other", "n.g"), "x" * 400 + " disk full")
    assert len(json.loads(good("dead", "ls", "--json", broker=address))) == 35

    def count(*words: str) -> int:
        return len(json.loads(good("dead", "ls", "--json", *words, broker=address)))

    assert count("--queue", "other") == 5
    assert count("--task", "m.*") == 30
    assert count("--error", "不见了") == 30
    assert count("--error", "DISK FULL") == 5  # behind what a listing holds of it
    assert count("--error", "disk full", "--where", "n=3") == 1
    assert count("--where", "student=7") == 3
    assert count("--where", "student=7", "--where", "n=17") == 1
    assert count("--where", "0=4.webm") == 2
    assert count("--older-than", "0", "--queue", "other") == 5
    assert count("--older-than", "3600") == 0
    assert count("--limit", "3") == 3
    more = zq("dead", "ls", "--limit", "3", broker=address)
    assert "there are more" in more.stderr
    assert "there are more" not in zq("dead", "ls", "--limit", "35", broker=address).stderr
    listed = json.loads(good("ls", "合并", "--state", "dead", "--where", "n=3", "--json", broker=address))
    assert len(listed) == 1


def test_thousands_are_retried_and_dropped_in_one_command(
    address: str, client: Client
) -> None:
    die(client, requests(3500))
    dry = json.loads(good("dead", "retry", "--where", "student=3", "--dry-run", "--json", broker=address))
    assert (dry["matched"], dry["done"], dry["dry_run"]) == (350, 0, True)
    assert dry["kinds"] == [{"queue": "合并", "task": "m.f", "count": 350}]
    assert client.queues()[0].dead == 3500
    assert "350 of 350 dead jobs run again" in good(
        "dead", "retry", "--where", "student=3", "--queue", "合并", "--yes", broker=address
    )
    assert (client.queues()[0].dead, client.queues()[0].ready) == (3150, 350)
    dropped = json.loads(good("dead", "drop", "--yes", "--json", broker=address))
    assert (dropped["matched"], dropped["done"], dropped["refused"]) == (3150, 3150, {})
    assert client.jobs("合并", State.DEAD).jobs == []
    assert "0 dead jobs match; nothing was changed" in good("dead", "drop", "--yes", broker=address)
    assert zq("audit", broker=address).exit_code == 0


def test_what_could_not_be_changed_is_counted_and_the_exit_code_tells(
    address: str, client: Client
) -> None:
    die(client, [JobRequest(task="m.f", queue="q", key="k")])
    client.submit("m.f", queue="q", key="k")
    result = zq("dead", "retry", "--yes", "--json", broker=address)
    assert result.exit_code == cli.EXIT_REFUSED
    assert json.loads(result.stdout)["refused"] == {"conflict": 1}
    assert "1 conflict" in result.stderr


def test_nobody_to_ask_means_no_change(address: str, client: Client) -> None:
    die(client, requests(2))
    for verb in ("retry", "drop"):
        result = zq("dead", verb, broker=address)
        assert result.exit_code == cli.EXIT_USAGE
        assert "--yes" in result.stderr
    assert client.queues()[0].dead == 2


@pytest.mark.parametrize(("answer", "left", "code"), [("n", 2, 1), ("y", 0, 0)])
def test_on_a_terminal_the_number_is_asked(
    live_broker: LiveBroker, client: Client, answer: str, left: int, code: int
) -> None:
    die(client, requests(2))
    ours, theirs = pty.openpty()
    env = {**os.environ, "ZQ_CLIENT_BROKER": live_broker.address, "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-m", "zq.cli", "dead", "drop"]
    ran = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    stdout, _ = ran.communicate(timeout=30)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert ran.returncode == code
    assert "drop 2 dead jobs?" in said
    assert client.queues()[0].dead == left or not client.jobs("合并", State.DEAD).jobs
    assert len(client.jobs("合并", State.DEAD).jobs) == left
    assert ("2 of 2 dead jobs dropped" in stdout.decode()) is (left == 0)


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with cli_dead.Progress("drop", 10) as progress:
        progress.show(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with cli_dead.Progress("drop", 10) as progress:
        progress.show(5)
    assert "drop 5 of 10" in capsys.readouterr().err


def test_events_are_printed_and_read_on_from(address: str, client: Client) -> None:
    first, other = client.submit("m.f", queue="q"), client.submit("m.f", queue="other")
    first.cancel()
    events = [json.loads(line) for line in good("events", "--json", broker=address).splitlines()]
    of_jobs = [(event["job"], event["event"], event["state"]) for event in events if event["job"]]
    assert of_jobs == [
        (first.id, "accept", "ready"), (other.id, "accept", "ready"), (first.id, "cancel", "cancelled"),
    ]  # fmt: skip
    numbers = [event["number"] for event in events]
    assert numbers == sorted(numbers)
    rest = good("events", "--json", "--after", str(numbers[0]), broker=address).splitlines()
    assert [json.loads(line)["number"] for line in rest][: len(numbers) - 1] == numbers[1:]
    assert "cancel → cancelled" in good("events", "--job", first.id, broker=address)
    of_queue = good("events", "--queue", "other", "--after", "0", broker=address)
    assert other.id in of_queue
    assert first.id not in of_queue
    beyond = good("events", "--after", "999999", "--json", broker=address)
    assert json.loads(beyond.splitlines()[0])["gap"] is True


def test_events_are_followed_over_a_restart_until_ctrl_c(live_broker: LiveBroker, client: Client) -> None:
    client.submit("m.f", queue="q")
    env = {**os.environ, "ZQ_CLIENT_BROKER": live_broker.address, "ZQ_CLIENT_TIMEOUT_S": "1", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "zq.cli", "events", "--follow", "--json", "--queue", "q"]
    ran = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
    assert ran.stdout is not None
    assert ran.stderr is not None
    try:
        assert json.loads(ran.stdout.readline())["event"] == "accept"
        live_broker.end(signal.SIGKILL)
        assert "waiting for it" in ran.stderr.readline()
        live_broker.start()
        late = client.submit("m.f", queue="q", countdown=60)
        seen: dict[str, Any] = {}
        while seen.get("job") != late.id:
            seen = json.loads(ran.stdout.readline())
        assert (seen["event"], seen["state"]) == ("accept", "scheduled")
        ran.send_signal(signal.SIGINT)
        assert ran.wait(20) == 0
    finally:
        ran.kill()
        ran.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "m.f", "--queue", "q", "--tag", "a b"], "tag"),
        (["submit", "m.f", "--queue", "q", "--key-policy", "steal"], "refuse"),
        (["submit", "m.f", "--queue", "q", "--concurrency-limit", "0"], "concurrency_limit"),
        (["dead", "ls", "--where", "student"], "name=value"),
        (["dead", "retry", "--where", "student", "--yes"], "name=value"),
        (["ls", "q", "--where", "=1"], "name=value"),
        (["dead", "ls", "--older-than", "-1"], "range"),
        (["events", "--after", "-1"], "range"),
        (["why", "123"], "not a job id"),
        (["limit"], "QUEUE"),
    ],
)
def test_wrong_words_are_answered_with_what_would_be_right(address: str, words: list[str], said: str) -> None:
    result = zq(*words, broker=address)
    assert result.exit_code == cli.EXIT_USAGE, result.output
    assert said in result.stderr
    assert result.stdout == ""


def test_every_command_has_help_and_json() -> None:
    for words in ("why", "pause", "resume", "limit", "events", "dead ls", "dead retry", "dead drop"):
        result = zq(*words.split(), "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


def test_all_that_a_job_can_be_asked_for_can_be_asked_for_here() -> None:
    """`trace` is for programs that pass theirs on; args, kwargs and id have names of their own."""
    options = {str(parameter.name) for parameter in cli_jobs.submit.params}
    named = {"positional": "args", "keywords": "kwargs", "job_id": "id"}
    assert set(JobRequest.__struct_fields__) - {named.get(name, name) for name in options} == {"trace"}


def test_limits_and_backoff_travel(live_broker: LiveBroker) -> None:
    limits = ["--backoff", "0.5", "--soft-time-limit", "30", "--time-limit", "60"]
    job_id = zq("submit", "m.f", "--queue", "q", *limits, broker=live_broker.address).stdout.split()[0]
    with Client(live_broker.config) as client:
        detail = client.detail(job_id)
    assert detail is not None
    spec = decode_spec(detail.spec)
    assert (spec.backoff_ms, spec.soft_limit_ms, spec.hard_limit_ms) == (500, 30_000, 60_000)
    refused = zq("submit", "m.f", "--queue", "q", "--time-limit", "1", "--soft-time-limit", "2")
    assert (refused.exit_code, "soft limit comes first" in refused.stderr) == (cli.EXIT_USAGE, True)

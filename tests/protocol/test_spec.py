"""SPEC.md and the code list the same messages and codes, with the same tags and the same speakers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import zq.protocol.messages as m
from zq.broker.sessions import VERBS
from zq.protocol.errors import Code

SPEC = Path(m.__file__).with_name("SPEC.md").read_text(encoding="utf-8")
LETTERS = {"W": m.Role.WORKER, "T": m.Role.TASK, "S": m.Role.SUBMITTER}
LETTERS |= {"C": m.Role.SCHEDULER, "M": m.Role.MONITOR, "A": m.Role.ADMIN}


def tags(union: object) -> dict[int, str]:
    return {message.__struct_config__.tag: message.__name__ for message in get_args(union)}


def test_every_message_is_in_the_specification_with_its_tag() -> None:
    listed = {int(tag): name for tag, name in re.findall(r"^\| (\d+) \| (\w+) \|", SPEC, re.M)}
    assert listed == tags(m.PeerMessage) | tags(m.BrokerMessage)


def test_who_may_say_what_is_as_specified() -> None:
    rows = re.findall(r"^\| \d+ \| (\w+) \| ([WTSCMA ]+|all) \|", SPEC, re.M)
    everybody = " ".join(LETTERS)
    speakers = {name: {LETTERS[x] for x in who.replace("all", everybody).split()} for name, who in rows}
    del speakers["Hello"]  # makes the session, so it is not in the table of what a session may say
    assert speakers == {verb.__name__: set(roles) for verb, (roles, _) in VERBS.items()}


def test_every_code_is_in_the_specification() -> None:
    section = SPEC.split("## 5. Codes")[1].split("The same request")[0]
    assert re.findall(r"`(\w+)`", section) == [code.value for code in Code]

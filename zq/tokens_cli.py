"""`zq tokens`: make, list and revoke the tokens with which programs use the HTTP API."""

from __future__ import annotations

import json
import time

import click

from zq.cli_options import config_option, json_option
from zq.config import load
from zq.exams import names
from zq.web.auth import Gate, ensure_token
from zq.web.tokens import REQUESTS_PER_MINUTE_MAX, Token, list_tokens, new_token, revoke_token, tokens_folder, when

DAY_S = 24 * 3600


@click.group("tokens")
def command() -> None:
    """Tokens for the HTTP API. Run these on the web server's machine."""


_days_option = click.option(
    "--days", type=click.FloatRange(min=0, min_open=True, max=36_500), help="How long it holds; for ever without it."
)


@command.command("new")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True, metavar="SCOPE",
    help="read, operate, admin, submit, or submit:QUEUE, where * and ? stand for any characters (repeatable).",
)  # fmt: skip
@_days_option
@click.option(
    "--requests-per-minute", type=click.IntRange(1, REQUESTS_PER_MINUTE_MAX),
    help="More are answered with 429 (default: web.requests_per_minute).",
)  # fmt: skip
@config_option
@json_option
def new_command(
    name: str,
    scopes: tuple[str, ...],
    days: float | None,
    requests_per_minute: int | None,
    config_path: str | None,
    as_json: bool,
) -> None:
    """Make a token named NAME and print it: once, it is kept nowhere."""
    expires_s = int(time.time() + days * DAY_S) if days is not None else None
    token, text = new_token(
        tokens_folder(load(config_path)), name, scopes, expires_s=expires_s, requests_per_minute=requests_per_minute
    )
    click.echo(json.dumps({**_facts(token), "token": text}, ensure_ascii=False) if as_json else text)


@command.command("ls")
@config_option
@json_option
def ls_command(config_path: str | None, as_json: bool) -> None:
    """List the tokens: names and scopes, never the tokens."""
    tokens = list_tokens(tokens_folder(load(config_path)))
    if as_json:
        click.echo(json.dumps([_facts(token) for token in tokens], ensure_ascii=False))
        return
    for token in tokens:
        ends = "for ever" if token.expires_s is None else f"until {when(token.expires_s)}"
        ended = " (expired)" if token.expires_s is not None and token.expires_s <= time.time() else ""
        click.echo(f"{token.name:<24} {', '.join(token.scopes):<40} {ends}{ended}")


@command.command("revoke")
@click.argument("name")
@config_option
@json_option
def revoke_command(name: str, config_path: str | None, as_json: bool) -> None:
    """Forget a token. A running server refuses it within about a second."""
    revoke_token(tokens_folder(load(config_path)), name)
    click.echo(json.dumps({"revoked": name}, ensure_ascii=False) if as_json else f"revoked {name}")


@command.command("student")
@click.argument("exam_id")
@click.argument("student_id")
@_days_option
@config_option
@json_option
def student_command(exam_id: str, student_id: str, days: float | None, config_path: str | None, as_json: bool) -> None:
    """Print an upload token for one student of one exam (a day, without --days).

    It opens heartbeat, segments, finish and status of this student, and nothing else. An exam application gets them
    from POST /v1/exams/{exam_id}/students/{student_id}/token.
    """
    names.exam_id(exam_id)
    names.student_id(student_id)
    gate = Gate(ensure_token(load(config_path).data_path))
    expires_s = int(time.time() + (days if days is not None else 1.0) * DAY_S)
    text = gate.student_token(exam_id, student_id, expires_s)
    facts = {"exam_id": exam_id, "student_id": student_id, "expires": when(expires_s), "token": text}
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)


def _facts(token: Token) -> dict[str, object]:
    return {
        "name": token.name,
        "scopes": token.scopes,
        "created": when(token.created_s),
        "expires": when(token.expires_s) if token.expires_s is not None else None,
        "requests_per_minute": token.requests_per_minute,
    }

"""The command line: `allim serve | up | publish | tail | types | token | key | doctor | plan | work`."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from allim import __version__
from allim.errors import Unauthenticated, Unusable
from allim.identity import OPERATOR, USER
from allim.requirements import check_version, needing
from allim.settings import Settings, SettingsError, load_settings, warnings
from allim.telemetry import configure_logging, quiet

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from allim.client import Subscriber

Result = TypeVar("Result")
DEFAULT_URL = "http://127.0.0.1:8000"
PORT = click.IntRange(0, 65_535)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="allim")
def main() -> None:
    """Server-sent event notifications over many replicas. Settings come from ALLIM_… variables."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=PORT, default=8000, show_default=True, help="0 takes any free port.")
def serve(host: str, port: int) -> None:
    """Run one replica, from settings."""
    _serve(_settings(), host, port)


@main.command()
@click.option("--replicas", default=1, show_default=True, help="2 or more: Redis, replicas and nginx.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=PORT, default=8000, show_default=True)
def up(replicas: int, host: str, port: int) -> None:
    """Run one process, or nginx and several replicas.

    Both serve the page and the API. Several replicas need redis-server and nginx on this machine.
    """
    if replicas < 1:
        _fail("--replicas: must be at least 1")
    if replicas == 1 and "ALLIM_REDIS_URL" not in os.environ:
        settings = _settings({**os.environ, "ALLIM_LOG_FORMAT": os.environ.get("ALLIM_LOG_FORMAT", "text")})
        click.echo(f"allim on http://{host}:{port} (one process, memory broker). Ctrl-C to stop.")
        _serve(settings, host, port)
        return
    from allim.up import run  # supervisord and its kin are for this alone

    _import("supervisor", "up", f"--replicas {replicas}")
    sys.exit(run(replicas, host, port, os.environ))


@main.command()
@click.argument("topic")
@click.argument("type_", metavar="TYPE")
@click.argument("data", metavar="JSON")
@click.option("--url", default=DEFAULT_URL, show_default=True)
@click.option("--key", envvar="ALLIM_PUBLISH_KEY", default="", help="A publish key; or ALLIM_PUBLISH_KEY.")
@click.option("--idempotency-key", help="Makes repeating the command harmless.")
@click.option("--timeout-s", default=10.0, show_default=True, help="The most that all attempts take together.")
def publish(
    topic: str, type_: str, data: str, url: str, key: str, idempotency_key: str | None, timeout_s: float
) -> None:
    """Publish one event and print its position."""
    from allim.client import ClientError, NotConfirmed, Publisher

    if not key:
        _fail("give --key, or set ALLIM_PUBLISH_KEY", "`allim key NAME` makes a key")
    try:
        value = json.loads(data)
    except ValueError as error:
        _fail(f"JSON: {error}")
    try:
        with Publisher(url, key, timeout_s=timeout_s) as publisher:
            published = publisher.publish(topic, type_, value, idempotency_key=idempotency_key)
    except (ClientError, NotConfirmed, ValueError, TypeError) as error:
        _fail(str(error))
    click.echo(f"{published.ids[0]} ({published.durability})")


@main.command()
@click.option("--url", default=DEFAULT_URL, show_default=True)
@click.option("--token", envvar="ALLIM_TOKEN", help="A session token; or ALLIM_TOKEN.")
@click.option("--user", help="Instead: sign a token for this account ID with the settings' own key.")
@click.option("--topics", default="", help="Further topics, separated by commas.")
@click.option("--last-event-id", default="", help="Resume here.")
def tail(url: str, token: str | None, user: str | None, topics: str, last_event_id: str) -> None:
    """Follow a stream in the terminal.

    It resumes by itself.
    """
    from allim.access.tokens import Tokens
    from allim.client import ClientError, Subscriber

    names = [name for name in topics.split(",") if name]
    if token is None and user is None:
        _fail("give --token or --user")
    if token is None:
        token = Tokens([_settings().secret_key], 3600).issue(str(user))
    try:
        subscriber = Subscriber(url, token, topics=names, last_event_id=last_event_id, on_retry=partial(_tell, url))
    except ValueError as error:
        _fail(str(error))
    try:
        asyncio.run(_follow(subscriber))
    except ClientError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        pass


@main.command()
@click.argument("url", default=DEFAULT_URL)
def types(url: str) -> None:
    """Print TypeScript types of all declared events.

    They are made of the catalogue that is served at URL: `allim types https://app.example.org > events.ts`.
    """
    import httpx

    from allim.catalogue.typescript import declarations

    place = f"{url.rstrip('/')}/api/catalogue.json"
    try:
        answer = httpx.get(place, timeout=10, follow_redirects=True)
        answer.raise_for_status()
        text = declarations(answer.json())
    except httpx.HTTPStatusError as error:
        _fail(f"{place} answers {error.response.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"{place}: {str(error) or type(error).__name__}")
    except (ValueError, KeyError, TypeError):
        _fail(f"{place}: the answer is no catalogue")
    click.echo(text, nl=False)


@main.command()
@click.argument("user")
@click.option("--operator", is_flag=True, help="With the role that may kick users and manage publish keys.")
@click.option("--topics", default="", help="Further topics it may read, separated by commas: exact, or `prefix:*`.")
@click.option("--lifetime-s", default=3600, show_default=True)
def token(user: str, operator: bool, topics: str, lifetime_s: int) -> None:
    """Print a session token for a user.

    It is signed with the settings' own key. Any client that holds it is that user.
    """
    from allim.access.tokens import Tokens

    grants = [topic for topic in topics.split(",") if topic]
    tokens = Tokens([_settings().secret_key], lifetime_s, max_s=lifetime_s)  # as asked for, also if that is long
    try:
        issued = tokens.issue(user, role=OPERATOR if operator else USER, topics=grants)
        asyncio.run(tokens.verify(issued))
    except Unauthenticated:
        _fail("this would be no valid token: see USER, --topics and --lifetime-s")
    click.echo(issued)


@main.command()
@click.argument("name")
def key(name: str) -> None:
    """Make a publish key for a service.

    Prints the secret for the service NAME, and the entry for ALLIM_PUBLISH_KEYS, which holds its digest alone.
    """
    from allim.access.publishers import check_name, digest_of, new_secret

    try:
        check_name(name)
    except ValueError as error:
        _fail(f"NAME: {error}")
    secret = new_secret()
    click.echo(f"secret  {secret}")
    click.echo(f"entry   {name}:sha256:{digest_of(secret.encode()).hex()}")


@main.command()
@click.option("--url", help="Where nginx serves: follow a stream there for two heartbeats (30 s).")
@click.option("--token", "text", help="Explain this token. Others on this machine see it in `ps`; see --token-file.")
@click.option("--token-file", type=click.File("r"), help="Explain the token in this file; `-` for standard input.")
def doctor(url: str | None, text: str | None, token_file: TextIO | None) -> None:
    """Check settings, database, Redis and a stream.

    Reports each fault with a remedy. With --token or --token-file it also examines this token, and says which
    check fails; with --url the stream is opened with that token.
    """
    _check_version("redis")
    from allim.doctor import examine  # its checks need every part of the system

    if token_file is not None:
        text = token_file.read()
    with quiet():
        findings = asyncio.run(examine(os.environ, url, text and text.strip()))
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.subject}: {finding.detail}")
        if finding.advice:
            click.echo(f"     → {finding.advice}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


@main.command()
@click.option("--streams", type=int, required=True, help="Streams open at once.")
@click.option("--events-per-s", type=float, required=True, help="Events published per second.")
@click.option("--fan-out", default="1", show_default=True, help="Streams that get each event, or `all`.")
@click.option("--event-bytes", default=200, show_default=True, help="Bytes of an event's data.")
@click.option("--batch", default=1, show_default=True, help="Events per publish request.")
@click.option("--keyed", is_flag=True, help="Requests carry idempotency keys, which Redis keeps for 24 hours.")
@click.option("--history-events", default=256, show_default=True, help="ALLIM_HISTORY_EVENTS.")
@click.option("--history-ttl-s", default=3600.0, show_default=True, help="ALLIM_HISTORY_TTL_S.")
@click.option("--json", "in_json", is_flag=True, help="For programs.")
def plan(streams: int, fan_out: str, in_json: bool, **rest: Any) -> None:
    """Compute the machines that a load needs.

    Replicas, Redis, nginx, network, and the resource that saturates first.
    """
    from allim import plan as planning

    try:
        reach = float(streams) if fan_out == "all" else float(fan_out)
    except ValueError:
        _fail("--fan-out: must be a number or `all`")
    try:
        made = planning.plan(planning.Load(streams=streams, fan_out=reach, **rest))
    except (ValueError, planning.Impossible) as error:
        _fail(str(error))
    click.echo(json.dumps(planning.as_json(made), ensure_ascii=False) if in_json else planning.as_text(made))


@main.group()
def work() -> None:
    """List jobs of background work that are dead, or try them again."""


@work.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
def dead(limit: int) -> None:
    """List dead jobs, the newest first.

    One line each: ID, name, attempts, error, arguments.
    """
    _import("allim.work", "storage", "allim work")
    from allim.work import dead_jobs

    for job in _over_database(lambda engine: dead_jobs(engine, limit)):
        click.echo(f"{job.id}  {job.name}  {job.attempts}  {job.error}  {job.arguments}")


@work.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every dead job.")
def retry(ids: tuple[str, ...], every: bool) -> None:
    """Try dead jobs again: those with these IDS, or --all."""
    _import("allim.work", "storage", "allim work")
    from allim.work import retry_jobs

    if bool(ids) == every:
        _fail("give the IDs of dead jobs, or --all")
    count = _over_database(lambda engine: retry_jobs(engine, ids or None))
    click.echo(f"{count} tried again")
    if ids and count < len(ids):
        _fail(f"{len(ids) - count} of them are not dead, or do not exist")


def _over_database(ask: "Callable[[AsyncEngine], Awaitable[Result]]") -> "Result":
    from allim.errors import Unavailable
    from allim.storage import open_engine, usable
    from allim.work import MIGRATIONS

    settings = _settings()

    async def run() -> "Result":
        engine = open_engine(settings.database_url)
        try:
            if not await usable(engine, {"work": MIGRATIONS}):
                _fail("ALLIM_DATABASE_URL: this version of allim has not run with this database yet")
            return await ask(engine)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(run())
    except (Unavailable, ValueError) as error:
        _fail(f"ALLIM_DATABASE_URL: {error}", getattr(error, "advice", ""))


def _serve(settings: Settings, host: str, port: int) -> None:
    _check_version("uvicorn")  # before its import
    from allim.app import create_app  # late, so that `publish` and `tail` start at once
    from allim.preflight import check
    from allim.server.replica import listen, serve

    configure_logging(settings.server_id, settings.log_level, pretty=settings.log_format == "text")
    try:
        listener = listen(host, port)
    except OSError as error:
        advice = "choose another with --port, or end the process that has it" if port else ""
        _fail(f"cannot listen on {host}:{port}: {error.strerror or error}", advice)
    try:
        asyncio.run(check(settings))
        app = create_app(settings)
    except SettingsError as error:
        _fail(str(error), error.advice)
    serve(app, settings, listener)


async def _follow(subscriber: "Subscriber") -> None:
    async with subscriber:
        async for message in subscriber:
            click.echo(f"{message.id}  {message.type}  {json.dumps(message.data, ensure_ascii=False)}")


def _tell(url: str, reason: str) -> None:
    click.echo(f"allim: {url}: {reason}; trying again", err=True)


def _check_version(library: str) -> None:
    try:
        check_version(library)
    except Unusable as error:
        _fail(str(error), error.advice)


def _import(module: str, extra: str, purpose: str) -> None:
    try:
        with needing(extra, purpose):
            import_module(module)
    except Unusable as error:
        _fail(str(error), error.advice)


def _settings(environ: dict[str, str] | None = None) -> Settings:
    for line in warnings(environ):
        click.echo(f"allim: {line}", err=True)
    try:
        return load_settings(environ)
    except SettingsError as error:
        _fail(str(error), error.advice)


def _fail(message: str, advice: str = "") -> NoReturn:
    click.echo(f"allim: {message}", err=True)
    if advice:
        click.echo(f"     → {advice}", err=True)
    sys.exit(2)

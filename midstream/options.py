"""The options of the `midstream` command and of its subcommands."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from bench import options
from shared.provider_kinds import is_kind
from shared.version import VERSION


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="midstream",
        description="A broker for LLM answers: every answer is a log that readers resume at the exact token.",
    )
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    by_name: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        subparser = by_name[name] = commands.add_parser(name, help=summary, description=summary)
        subparser.add_argument("--version", action="version", version=f"midstream {VERSION}")
        return subparser

    _add_up(command("up", "Run a gateway, workers and, unless a Redis is named, an embedded Valkey, until Ctrl-C."))
    _add_demo(command("demo", "Generate one answer, cut its connection twice, and resume at the exact token."))
    _add_tail(command("tail", "Follow a stream in the terminal, and resume it after each lost connection."))
    _add_top(command("top", "Show the running streams, rates, lag, workers and gateways, until Ctrl-C."))
    _add_usage(command("usage", "Print what each principal has used: streams and tokens, by model and day."))
    _add_doctor(
        command(
            "doctor",
            "Test whether streams reach readers undelayed, or whether Redis is as it should be; if not, say what to change.",
        )
    )
    _add_list(command("list", "List the newest streams, those that run and those that are archived."))
    _add_show(command("show", "Show a stream: its state, what happened when, who read it, and its text."))
    _add_export(command("export", "Write what each archived stream has used to a file, for billing."))
    forget = command("forget", "Delete everything of one owner: what runs, what Redis has, and what is archived.")
    forget.add_argument("owner", metavar="OWNER", help="the owner's name, as `midstream list` shows it")
    _add_keys(command("keys", "Make, list, revoke and replace the API keys of services."))
    _add_webhooks(command("webhooks", "List webhooks that have failed, send them again, and print their secrets."))
    options.add_arguments(command("bench", options.SUMMARY))

    metrics = command("metrics", "List every metric with its kind, its labels, its meaning and what it costs.")
    metrics.add_argument("--markdown", action="store_true", help="print the page of the documentation")
    metrics.add_argument("--json", action="store_true", help="print JSON")

    settings = command("settings", "List every setting with its default, its unit and the reason for it.")
    settings.add_argument("--markdown", action="store_true", help="print the page of the documentation")
    settings.add_argument("--json", action="store_true", help="print JSON")
    return parser, by_name


def _add_provider(command: argparse.ArgumentParser) -> None:
    command.add_argument("--redis", metavar="URL", help="use this Redis or Valkey instead of the embedded one")
    command.add_argument(
        "--provider",
        type=_provider,
        metavar="NAME",
        help="who generates the answers: openai, simulated, or a generator of your own as package.module:object",
    )
    command.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible API, with its /v1")
    command.add_argument("--model", help="the model for requests that name none")


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("MIDSTREAM_URL", "http://127.0.0.1:8000"),
        help="the gateway (MIDSTREAM_URL, or http://127.0.0.1:8000); MIDSTREAM_API_KEY is the credential, if it asks for one",
    )


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--host", help="the address to listen on (127.0.0.1)")
    up.add_argument("--port", type=_port, help="the port to listen on (8000); 0: any free port")
    _add_provider(up)
    up.add_argument(
        "--reload", action="store_true", help="restart the workers when the code of your own generator has changed"
    )
    up.add_argument(
        "--auth", action="store_true", help="let in only who has an API key, and print one that may do everything"
    )
    up.add_argument("--workers", type=_count, default=1, metavar="N", help="how many worker processes (1)")
    up.add_argument("--gateways", type=_count_or_0, metavar="N", help="how many gateway processes (1); 0: one per core")
    up.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the embedded Valkey stores its data, and ended answers are kept (not stored)",
    )
    up.add_argument(
        "--log-format", choices=("json", "text"), help="format of log lines (text on a terminal, else json)"
    )
    up.add_argument(
        "--metrics-port",
        type=_port,
        metavar="PORT",
        help="the first worker's port for /metrics; the others take the next ports",
    )


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--prompt", help="what to ask")
    _add_provider(demo)


def _add_tail(tail: argparse.ArgumentParser) -> None:
    tail.add_argument("target", metavar="URL|ID", help="a stream's id, or the URL of its events")
    _add_server(tail)
    tail.add_argument("--last-event-id", default="", metavar="ID", help="resume after this event")
    tail.add_argument("--json", action="store_true", help="print events as JSON lines")
    tail.add_argument(
        "--give-up",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give up after being unable to connect for this long (60)",
    )


def _add_top(top: argparse.ArgumentParser) -> None:
    _add_server(top)
    top.add_argument("--once", action="store_true", help="show one snapshot and exit")
    top.add_argument("--json", action="store_true", help="print JSON: one line a second, or with --once one object")


def _add_usage(usage: argparse.ArgumentParser) -> None:
    usage.add_argument(
        "--from",
        dest="first",
        metavar="DAY",
        help="the first day (UTC), as in 2026-11-28; by default the first of the month",
    )
    usage.add_argument("--to", dest="last", metavar="DAY", help="the last day; by default today")
    usage.add_argument("--principal", metavar="NAME", help="of this principal only")
    usage.add_argument("--by-day", action="store_true", help="a row for each day, not the sum of all")
    _add_server(usage)
    form = usage.add_mutually_exclusive_group()
    form.add_argument("--csv", dest="form", action="store_const", const="csv", default="table", help="print CSV")
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON, one row a line")


def _add_list(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--status", choices=("queued", "running", "completed", "failed", "cancelled"), help="only these"
    )
    command.add_argument("--model", help="only answers of this model")
    command.add_argument("--owner", help="only this owner's (for an administrator)")
    command.add_argument(
        "--metadata",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only streams with this metadata",
    )
    command.add_argument(
        "--from", dest="first", metavar="TIME", help="created at this time or later, as in 2026-11-28T00:00:00Z"
    )
    command.add_argument("--to", dest="last", metavar="TIME", help="created before this time")
    command.add_argument("--count", type=int, default=20, metavar="N", help="how many at most (20)")
    _add_server(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_show(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="the stream's id")
    _add_server(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=("ndjson", "csv", "parquet"), default="ndjson", help="the format (ndjson)")
    command.add_argument("--output", default="-", metavar="FILE", help="where to (standard output)")
    command.add_argument("--owner", help="only this owner's")
    command.add_argument(
        "--from",
        dest="first",
        type=_moment,
        metavar="TIME",
        help="created at this time or later (UTC), as in 2026-11-01",
    )
    command.add_argument("--to", dest="last", type=_moment, metavar="TIME", help="created before this time")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("url", nargs="?", metavar="URL", help="the address that readers use")
    doctor.add_argument(
        "--redis",
        nargs="?",
        const="",
        metavar="URL",
        help="test Redis instead: a server, a cluster or a primary behind Sentinels (MIDSTREAM_REDIS_URL)",
    )
    doctor.add_argument(
        "--role", choices=("gateway", "worker"), help="with --redis: try only what this process needs (both)"
    )
    doctor.add_argument(
        "--via",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="an address between gateway and readers; repeat it, starting with the gateway's own",
    )
    doctor.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="send this request header too, such as Host"
    )
    doctor.add_argument(
        "--idle",
        type=float,
        metavar="SECONDS",
        help="how long a silent connection must stay open (the gateway's keep-alive interval + 2 s); 0: not tested",
    )
    doctor.add_argument(
        "--age",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long one response must be able to last (not tested)",
    )
    doctor.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long to wait for a late answer (10)"
    )
    doctor.add_argument("--insecure", action="store_true", help="do not verify certificates")
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _add_keys(keys: argparse.ArgumentParser) -> None:
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=summary, description=summary)
        parser.add_argument("--redis", metavar="URL", help="the Redis of the gateways (MIDSTREAM_REDIS_URL)")
        return parser

    create = action("create", "Make a key, and show it once.")
    create.add_argument("name", metavar="NAME", help="who has the key: the owner of the streams that it creates")
    create.add_argument(
        "--scopes",
        required=True,
        metavar="SCOPE,SCOPE",
        help="what it may do: of create, read, cancel, write, act (create for end users), admin",
    )
    create.add_argument("--expires", type=_duration, metavar="TIME", help="as in 90d or 12h (never)")
    create.add_argument(
        "--limit", action="append", default=[], metavar="NAME=NUMBER", help="a limit of its own; may be repeated"
    )
    create.add_argument(
        "--webhook", default="", metavar="URL", help="where a signed POST goes when one of its streams has ended"
    )
    create.add_argument("--webhook-text", action="store_true", help="those POSTs have the answer's text, up to 64 KiB")
    create.add_argument(
        "--for-file", action="store_true", help="store nothing in Redis; print the line for MIDSTREAM_API_KEYS_FILE"
    )
    create.add_argument("--json", action="store_true", help="print JSON")
    listing = action("list", "List the keys in Redis: never the keys themselves.")
    listing.add_argument("--json", action="store_true", help="print JSON")
    revoke = action("revoke", "Revoke a key: no gateway takes it any more, within five seconds.")
    revoke.add_argument(
        "key", metavar="NAME|ID|KEY", help="a name (all its keys), an id of the list, or the key itself"
    )
    rotate = action("rotate", "Make a new key in place of the present one, which stays valid for a while.")
    rotate.add_argument("name", metavar="NAME", help="the name of the keys")
    rotate.add_argument(
        "--grace", type=_duration, default=86_400.0, metavar="TIME", help="how long the former key stays valid (1d)"
    )
    rotate.add_argument("--json", action="store_true", help="print JSON")


def _add_webhooks(webhooks: argparse.ArgumentParser) -> None:
    actions = webhooks.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=summary, description=summary)
        if name != "secret":
            parser.add_argument("--redis", metavar="URL", help="the Redis of the gateways (MIDSTREAM_REDIS_URL)")
        return parser

    listing = action("list", "List those that were given up, kept for a week, and those that are tried again.")
    listing.add_argument("--count", type=int, default=100, metavar="N", help="how many at most (100)")
    listing.add_argument("--json", action="store_true", help="print JSON, one a line")
    show = action("show", "Show one that has failed, with its body.")
    show.add_argument("id", metavar="ID", help="the stream's id, which is the webhook's, too")
    show.add_argument("--json", action="store_true", help="print JSON")
    retry = action("retry", "Send one that has failed now, and try for another day.")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?", default="", help="the stream's id")
    which.add_argument("--all", action="store_true", help="all that were given up")
    secret = action(
        "secret", "Print what a receiver verifies with: MIDSTREAM_WEBHOOK_SECRETS, or one principal's secrets."
    )
    secret.add_argument(
        "principal",
        metavar="PRINCIPAL",
        nargs="?",
        default="",
        help="who creates the streams, as in key:shop, where a request or the key names the webhook",
    )
    secret.add_argument("--new", action="store_true", help="print a new random one, for MIDSTREAM_WEBHOOK_SECRETS")


def _duration(text: str) -> float:
    from midstream.keys import seconds_of

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _provider(text: str) -> str:
    if not is_kind(text):
        raise argparse.ArgumentTypeError(f"must be openai, simulated or package.module:object, not {text!r}")
    return text


def _pair(text: str) -> str:
    if text.partition("=")[1] != "=" or text.startswith("="):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not {text!r}")
    return text


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a day or a time, as in 2026-11-01, not {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 64, not {text!r}")
    return int(text)


def _count_or_0(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 64, not {text!r}")
    return int(text)

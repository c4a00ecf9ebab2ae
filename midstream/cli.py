"""`midstream`: the one command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from bench import options
from shared.errors import MidstreamError
from shared.settings import described
from shared.version import VERSION

_PROVIDERS = ("openai", "simulated")


def main(arguments: Sequence[str] | None = None) -> int:
    told = _parser().parse_args(arguments)
    try:
        return _run(told)
    except MidstreamError as error:
        print(f"midstream {told.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # whoever read us has gone: `midstream ... | head`
        return 141


def _run(told: argparse.Namespace) -> int:
    """Each command is imported when it is called: `--help` need not wait for all of them."""
    if told.command == "up":
        from midstream.up import up

        return up(
            host=told.host,
            port=told.port,
            redis_url=told.redis,
            provider=told.provider,
            workers=told.workers,
            gateways=told.gateways,
            data_dir=told.data_dir,
            log_format=told.log_format,
            metrics_port=told.metrics_port,
        )
    if told.command == "demo":
        from midstream.demo import demo

        return demo(prompt=told.prompt, provider=told.provider, base_url=told.base_url, model=told.model)
    if told.command == "tail":
        from midstream.tail import tail

        return tail(
            told.target,
            server=told.server,
            last_event_id=told.last_event_id,
            as_json=told.json,
            give_up_seconds=told.give_up,
        )
    if told.command == "top":
        from midstream.top import top

        return top(server=told.server, once=told.once, as_json=told.json)
    if told.command == "doctor":
        from midstream.doctor import doctor

        return doctor(
            told.url,
            via=told.via,
            headers=told.header,
            idle_seconds=told.idle,
            age_seconds=told.age,
            timeout_seconds=told.timeout,
            insecure=told.insecure,
            json=told.json,
        )
    if told.command == "bench":
        from bench.run import bench

        return bench(told)
    if told.command == "metrics":
        return _metrics(told.markdown)
    return _settings(told.markdown, told.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midstream", description="A broker for LLM answers: every answer is a log that any reader resumes exactly."
    )
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=summary, description=summary)
        one.add_argument("--version", action="version", version=f"midstream {VERSION}")
        return one

    up = command("up", "Run a gateway, workers and, unless a Redis is named, an embedded Valkey, until Ctrl-C.")
    up.add_argument("--host", help="the address to listen on (127.0.0.1)")
    up.add_argument("--port", type=_port, help="the port to listen on (8000); 0 takes a free one")
    up.add_argument("--redis", metavar="URL", help="use this Redis or Valkey and not the embedded one")
    up.add_argument("--provider", choices=_PROVIDERS, help="who generates the answers")
    up.add_argument("--workers", type=_count, default=1, metavar="N", help="how many worker processes (1)")
    up.add_argument("--gateways", type=_count_or_0, metavar="N", help="how many gateway processes (1); 0: one per core")
    up.add_argument("--data-dir", type=Path, metavar="DIR", help="where the embedded Valkey keeps its data (nowhere)")

    up.add_argument("--log-format", choices=("json", "text"), help="how lines look (text on a terminal, else json)")
    up.add_argument(
        "--metrics-port", type=_port, metavar="PORT", help="where the workers serve /metrics, and the ports after it"
    )

    demo = command("demo", "One answer, its connection cut twice in mid-sentence, resumed at the exact token.")
    demo.add_argument("--prompt", help="what to ask")
    demo.add_argument("--provider", choices=_PROVIDERS, help="who answers")
    demo.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible API, with its /v1")
    demo.add_argument("--model", help="the model to ask for")

    tail = command("tail", "Follow a stream in the terminal; a lost connection is resumed by itself.")
    tail.add_argument("target", metavar="URL|ID", help="a stream's id, or the URL of its events")
    tail.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("MIDSTREAM_URL", "http://127.0.0.1:8000"),
        help="the gateway for an id (MIDSTREAM_URL, or http://127.0.0.1:8000)",
    )
    tail.add_argument("--last-event-id", default="", metavar="ID", help="go on after this event")
    tail.add_argument("--json", action="store_true", help="print events as JSON lines")
    tail.add_argument(
        "--give-up", type=float, default=60.0, metavar="SECONDS", help="end when it cannot be reached for so long (60)"
    )

    top = command("top", "What runs now: streams, rates, lag, workers and gateways, until Ctrl-C.")
    top.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("MIDSTREAM_URL", "http://127.0.0.1:8000"),
        help="the gateway (MIDSTREAM_URL, or http://127.0.0.1:8000)",
    )
    top.add_argument("--once", action="store_true", help="one snapshot, and the end")
    top.add_argument("--json", action="store_true", help="as JSON; without --once one line a second")

    doctor = command(
        "doctor", "Does a stream reach its readers as it is sent? If not: which hop is at fault, what to change."
    )
    doctor.add_argument("url", metavar="URL", help="where readers reach the gateway")
    doctor.add_argument(
        "--via",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="an address along the way, the gateway's own first; may be repeated, outwards",
    )
    doctor.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="send this header too, such as Host"
    )
    doctor.add_argument(
        "--idle",
        type=float,
        metavar="SECONDS",
        help="how long a connection must bear silence (2 s more than the gateway's keep-alive interval); 0: not tested",
    )
    doctor.add_argument(
        "--age",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="also: may one response last for so long? (not tested)",
    )
    doctor.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long an address may be late (10)"
    )
    doctor.add_argument("--insecure", action="store_true", help="do not verify certificates")
    doctor.add_argument("--json", action="store_true", help="for machines")

    options.add_arguments(command("bench", options.SUMMARY))

    metrics = command("metrics", "List every metric with its kind, its labels, its meaning and what it costs.")
    metrics.add_argument("--markdown", action="store_true", help="as the page in the documentation")

    settings = command("settings", "List every setting with its default, its unit and the reason for it.")
    settings.add_argument("--markdown", action="store_true", help="as the page in the documentation")
    settings.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port from 0 to 65535 is wanted, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"a number from 1 to 64 is wanted, not {text!r}")
    return int(text)


def _count_or_0(text: str) -> int:
    if not text.isdecimal() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"a number from 0 to 64 is wanted, not {text!r}")
    return int(text)


def _metrics(markdown: bool) -> int:
    from shared.metrics import defined
    from shared.metrics import markdown as page

    if markdown:
        print(page(), end="")
        return 0
    for one in defined():
        print(f"{one.exposed} ({one.where}, {one.kind}{''.join(f', {label}' for label in one.labels)})\n    {one.help}")
    return 0


def _settings(markdown: bool, as_json: bool) -> int:
    listed = list(described())
    if as_json:
        rows = [{"name": s.env, "default": s.default, "unit": s.unit, "why": s.why} for s in listed]
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    elif markdown:
        print(
            "# Settings\n\nThis page is made by `midstream settings --markdown`; every setting is an environment variable.\n"
        )
        print("| variable | default | unit | why |\n|---|---|---|---|")
        for s in listed:
            print(f"| `{s.env}` | {f'`{s.default}`' if s.default != '' else '–'} | {s.unit} | {s.why} |")
    else:
        for s in listed:
            print(f"{s.env}={s.default}\n    {s.unit}. {s.why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

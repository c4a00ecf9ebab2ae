"""The `midstream` command: runs the subcommand that was chosen. Its options are in `midstream.options`."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence

import orjson

from midstream.options import make_parser
from shared.archive.wanted import Wanted
from shared.errors import MidstreamError
from shared.logs import set_up_logging
from shared.settings import Settings, described


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: the command's, 1 after an error that it raised, 130 after Ctrl-C, 141 if
    nobody reads the output any more."""
    parser, commands = make_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen = commands.get(arguments.command, parser)
        chosen.error(_unrecognized(unknown, chosen))
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return _COMMANDS[arguments.command](arguments)
    except MidstreamError as error:
        print(f"midstream {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `midstream ... | head`: Python writes what is left at its end, to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _unrecognized(arguments: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Returns the message about arguments that a parser does not know, with the nearest option."""
    options = [option for action in parser._actions for option in action.option_strings]
    wrong = next((argument.partition("=")[0] for argument in arguments if argument.startswith("-")), "")
    nearest = difflib.get_close_matches(wrong, options, 1)
    return f"unrecognized arguments: {' '.join(arguments)}" + (f"; did you mean {nearest[0]}?" if nearest else "")


# --- the commands: each imports its module only when it runs, so that `--help` stays fast


def _up(arguments: argparse.Namespace) -> int:
    from midstream.up import up

    return up(
        host=arguments.host,
        port=arguments.port,
        redis_url=arguments.redis,
        provider=arguments.provider,
        base_url=arguments.base_url,
        model=arguments.model,
        workers=arguments.workers,
        gateways=arguments.gateways,
        data_dir=arguments.data_dir,
        log_format=arguments.log_format,
        metrics_port=arguments.metrics_port,
        reload=arguments.reload,
        auth=arguments.auth,
    )


def _demo(arguments: argparse.Namespace) -> int:
    from midstream.demo import demo

    return demo(
        prompt=arguments.prompt,
        redis_url=arguments.redis,
        provider=arguments.provider,
        base_url=arguments.base_url,
        model=arguments.model,
    )


def _tail(arguments: argparse.Namespace) -> int:
    from midstream.tail import tail

    return tail(
        arguments.target,
        server=arguments.server,
        last_event_id=arguments.last_event_id,
        as_json=arguments.json,
        give_up_seconds=arguments.give_up,
    )


def _top(arguments: argparse.Namespace) -> int:
    from midstream.top import top

    return top(server=arguments.server, once=arguments.once, as_json=arguments.json)


def _usage(arguments: argparse.Namespace) -> int:
    from midstream.usage import usage

    names = {"from": arguments.first, "to": arguments.last, "principal": arguments.principal}
    return usage(
        server=arguments.server,
        query={name: value for name, value in names.items() if value},
        by_day=arguments.by_day,
        form=arguments.form,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from midstream.doctor import doctor, doctor_of_redis

    if (arguments.url is None) == (arguments.redis is None):
        print("midstream doctor: needs the address that readers use, or --redis, and not both", file=sys.stderr)
        return 2
    if arguments.redis is not None:
        return doctor_of_redis(arguments.redis, role=arguments.role, json=arguments.json)
    return doctor(
        arguments.url,
        via=arguments.via,
        headers=arguments.header,
        idle_seconds=arguments.idle,
        age_seconds=arguments.age,
        timeout_seconds=arguments.timeout,
        insecure=arguments.insecure,
        json=arguments.json,
    )


def _archive(arguments: argparse.Namespace) -> int:
    from midstream import archive

    if arguments.command == "list":
        names = {"status": arguments.status, "model": arguments.model, "owner": arguments.owner}
        times = {"from": arguments.first, "to": arguments.last}
        query = {name: value for name, value in {**names, **times}.items() if value}
        query |= {f"metadata.{key}": value for key, _, value in (pair.partition("=") for pair in arguments.metadata)}
        return archive.list_streams(server=arguments.server, query=query, count=arguments.count, as_json=arguments.json)
    if arguments.command == "show":
        return archive.show(server=arguments.server, stream_id=arguments.id, as_json=arguments.json)
    settings = Settings.from_environment(os.environ)
    if arguments.command == "forget":
        set_up_logging("warning", settings.log_format)  # for the audit line
        return archive.forget(settings=settings, owner=arguments.owner)
    wanted = Wanted(owner=arguments.owner, from_time=arguments.first, to_time=arguments.last)
    return archive.export(settings=settings, wanted=wanted, form=arguments.format, output=arguments.output)


def _keys(arguments: argparse.Namespace) -> int:
    from midstream import keys

    redis_url = keys.redis_url_of(arguments.redis)
    set_up_logging("warning", Settings.from_environment(os.environ).log_format)  # for the audit lines
    if arguments.action == "create":
        return keys.create_key(
            redis_url,
            arguments.name,
            arguments.scopes,
            arguments.expires,
            arguments.limit,
            arguments.webhook,
            webhook_text=arguments.webhook_text,
            as_json=arguments.json,
            stored=not arguments.for_file,
        )
    if arguments.action == "list":
        return keys.list_keys(redis_url, as_json=arguments.json)
    if arguments.action == "revoke":
        return keys.revoke_key(redis_url, arguments.key)
    return keys.rotate_key(redis_url, arguments.name, arguments.grace, as_json=arguments.json)


def _webhooks(arguments: argparse.Namespace) -> int:
    from midstream import webhooks
    from midstream.keys import redis_url_of

    if arguments.action == "secret":
        return webhooks.print_secrets(Settings.from_environment(os.environ), arguments.principal, is_new=arguments.new)
    redis_url = redis_url_of(arguments.redis)
    if arguments.action == "list":
        return webhooks.list_webhooks(redis_url, count=arguments.count, as_json=arguments.json)
    if arguments.action == "show":
        return webhooks.show_webhook(redis_url, arguments.id, as_json=arguments.json)
    return webhooks.retry_webhooks(redis_url, arguments.id)


def _bench(arguments: argparse.Namespace) -> int:
    from bench.run import bench

    return bench(arguments)


def _metrics(arguments: argparse.Namespace) -> int:
    from shared.metrics import defined
    from shared.metrics import markdown as page

    if arguments.markdown:
        print(page(), end="")
        return 0
    if arguments.json:
        rows = [
            {
                "name": metric.exposed,
                "kind": metric.kind,
                "where": metric.where,
                "labels": metric.labels,
                "help": metric.help,
                "costs": metric.cost,
            }
            for metric in defined()
        ]
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return 0
    for metric in defined():
        labels = "".join(f", {label}" for label in metric.labels)
        print(f"{metric.exposed} ({metric.where}, {metric.kind}{labels})\n    {metric.help}")
    return 0


def _settings(arguments: argparse.Namespace) -> int:
    listed = list(described())
    if arguments.json:
        rows = [
            {"name": setting.env, "default": setting.default, "unit": setting.unit, "why": setting.why}
            for setting in listed
        ]
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    elif arguments.markdown:
        print(
            "# Settings\n\nThis page is made by `midstream settings --markdown`; every setting is an environment variable.\n"
        )
        print("| variable | default | unit | why |\n|---|---|---|---|")
        for setting in listed:
            default = f"`{setting.default}`" if setting.default != "" else "–"
            print(f"| `{setting.env}` | {default} | {setting.unit} | {setting.why} |")
    else:
        for setting in listed:
            print(f"{setting.env}={setting.default}\n    {setting.unit}. {setting.why}")
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "demo": _demo,
    "tail": _tail,
    "top": _top,
    "usage": _usage,
    "doctor": _doctor,
    "list": _archive,
    "show": _archive,
    "export": _archive,
    "forget": _archive,
    "keys": _keys,
    "webhooks": _webhooks,
    "bench": _bench,
    "metrics": _metrics,
    "settings": _settings,
}


if __name__ == "__main__":
    sys.exit(main())

"""Shows an answer: `python examples/terminal_client.py "What is a river?"`, or an earlier one: `--stream ID`. Ctrl-C stops it."""

import argparse
import os
import sys

from midstream.client import Cancelled, Client, Done, Failed, Lost, Restarted, Token


def show(client: Client, stream: str) -> int:
    for event in client.follow(stream):
        match event:
            case Token(token):
                print(token, end="", flush=True)
            case Restarted(reason=reason):
                print(f"\n[begun anew: {reason}]\n{event.text}", end="", flush=True)
            case Lost(error, seconds):
                print(f"\n[{error}; next try in {seconds:.1f} s]", file=sys.stderr)
            case Done(truncated=truncated):
                print("\n[cut off at its length limit]" if truncated else "")
            case Failed(code, message):
                print(f"\n[{code}: {message}]")
            case Cancelled(by):
                print(f"\n[stopped by {by}]")
    return 0 if isinstance(event, Done) else 1


parser = argparse.ArgumentParser()
parser.add_argument("prompt", nargs="?", default="Tell me about rivers.")
parser.add_argument("--stream")
arguments = parser.parse_args()
server = os.environ.get("MIDSTREAM_URL", "http://127.0.0.1:8000")
with Client(server, token=os.environ.get("MIDSTREAM_API_KEY")) as client:
    stream = arguments.stream or client.create(arguments.prompt).id
    try:
        sys.exit(show(client, stream))
    except KeyboardInterrupt:
        print(f"\n[{client.cancel(stream).status}: {stream}]")

"""Ends the children of a `midstream up` that was killed and could not do it itself.

Run as a script, alone in its session, with a pipe from its parent as standard input: `+PID` and `-PID` lines say which
processes there are. When the pipe closes, the parent is gone, however it went, and what is left is killed.
"""

import os
import signal
import sys


def main() -> None:
    alive: set[int] = set()
    for line in sys.stdin:
        (alive.add if line[0] == "+" else alive.discard)(int(line[1:]))
    for pid in alive:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()

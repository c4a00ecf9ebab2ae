"""Ends the children of a `midstream up` that was killed and could not do it itself.

Run as a script, alone in its session, with a pipe from its parent as standard input: `+PID` and `-PID` lines say which
processes there are, a line with a path names a private folder. When the pipe closes, the parent is gone, however it
went; what processes are left are killed, and the folder is removed.
"""

import os
import shutil
import signal
import sys


def main() -> None:
    alive: set[int] = set()
    private_dir = ""
    for line in sys.stdin:
        sign, rest = line[0], line[1:].strip()
        if sign == "+":
            alive.add(int(rest))
        elif sign == "-":
            alive.discard(int(rest))
        else:
            private_dir = line.strip()
    for pid in alive:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if private_dir:
        shutil.rmtree(private_dir, ignore_errors=True)


if __name__ == "__main__":
    main()

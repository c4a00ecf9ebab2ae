"""Ends the children of a `midstream up` that was killed and could not end them itself.

Runs as a script in a session of its own. Its parent writes to its standard input: `+PID` for a process that started,
`-PID` for one that ended, or the path of a private folder. When that pipe closes, the parent is gone: the processes that
are left are killed, and the folder is removed.
"""

import os
import shutil
import signal
import sys


def main() -> None:
    """Takes lines until standard input closes, then ends what is left."""
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

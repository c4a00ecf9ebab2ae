"""Every error that Midstream raises on purpose, in one tree.

The docstring of a class is its default message. The class says whose fault it is: `Rejected` the caller's, `Unusable` the
owner's; the others come from the surroundings, and their docstrings say whether to try again.
"""

from __future__ import annotations

_FORBIDDEN = ("ACL failure in script", "The user executing the script can't", "unknown command", "nknown Redis command")
"""Words with which Redis and Valkey refuse, beside NOPERM, a forbidden or unknown command."""

_PASSING = frozenset(
    {"LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED"}
)
"""UNBLOCKED: a command that waited, when its key moved to another master or its server became a replica."""


class MidstreamError(Exception):
    """Something went wrong in Midstream."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class Rejected(MidstreamError):
    """The request is not valid. (The caller's fault: the same request will fail again.)"""


class MalformedId(Rejected):
    """An event id is `<attempt>-<offset>`, two whole numbers, as in 1-57."""


class Unusable(MidstreamError):
    """The configuration cannot work. (The owner's fault: printed at the start, without a trace.)"""


class Disconnected(MidstreamError):
    """The connection to Redis was lost before the reply came: the command may or may not have been carried out."""


class RedisRefused(MidstreamError):
    """Redis answered with an error."""

    @property
    def code(self) -> str:
        """The first word of the reply, by Redis's convention the kind of error: ERR, OOM, NOSCRIPT, LOADING, ..."""
        return str(self).split(" ", 1)[0]

    @property
    def forbids(self) -> bool:
        """Whether the user of Redis lacks a permission, or the server does not know the command."""
        message = str(self)
        return self.code == "NOPERM" or any(words in message for words in _FORBIDDEN)

    @property
    def passing(self) -> bool:
        """Whether the same command may succeed a moment later (start-up, failover, a script that runs long)."""
        return self.code in _PASSING


class OddReply(RedisRefused):
    """ODDREPLY Redis answered with what this command never answers: a proxy, or a server of another kind."""


class LogFull(MidstreamError):
    """There is no room for the answer: it reached its own bound, or Redis reached its maxmemory."""


class QueueFull(MidstreamError):
    """Too many requests are waiting for a worker."""


class Fenced(MidstreamError):
    """A later attempt, a cancel or a delete stands in the log: this attempt may write nothing more."""


class ArchiveAway(MidstreamError):
    """The archive's database does not answer, or refuses what is asked of it."""


class Unreadable(MidstreamError):
    """The stream's log holds what cannot be read."""


class NewerFormat(MidstreamError):
    """The stream's log has a newer format than this version writes: a worker of a newer version must write it."""

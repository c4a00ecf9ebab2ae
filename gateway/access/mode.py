"""Whether a gateway asks its clients who they are.

Off only where none but the machine itself can reach the gateway, or where the operator has said so in words.
"""

from __future__ import annotations

from gateway.listening import is_loopback
from shared.errors import Unusable
from shared.settings import Settings


def is_authentication_on(settings: Settings, listens_at: str) -> bool:
    """Returns whether a gateway that listens at this address asks for credentials.

    Raises Unusable where strangers could reach it and nothing says who may.
    """
    if settings.auth != "auto":
        return settings.auth == "required"
    if settings.api_keys_file or settings.api_keys or settings.jwt_keys:
        return True  # somebody has said who may
    if is_loopback(listens_at):
        return False
    raise Unusable(
        f"the gateway would listen at {listens_at or 'all addresses'}, where others can reach it, and nothing says who may use it: "
        "set MIDSTREAM_AUTH=required to ask for API keys or tokens, or MIDSTREAM_AUTH=none to let in whoever reaches the port"
    )

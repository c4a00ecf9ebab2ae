"""The archive: ended streams in a database, one row each. Imported only where MIDSTREAM_ARCHIVE_URL is set.

store       the database: keep, read, find, erase, forget, prune
record      what a row says of a stream
pieces      the entries of a log as one compressed piece, encrypted if there is a key
schema      the table; migrations (Alembic) bring a database to it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import Unusable
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.archive.store import Archive


def archive_of(settings: Settings) -> Archive | None:
    """Returns the archive that the settings name; None if they name none. Raises Unusable."""
    if not settings.archive_url:
        return None
    try:
        from shared.archive.store import Archive
    except ImportError as error:
        raise Unusable(
            f"MIDSTREAM_ARCHIVE_URL needs a package that is missing ({error.name}): pip install 'midstream[archive]'"
        ) from None
    return Archive(settings)

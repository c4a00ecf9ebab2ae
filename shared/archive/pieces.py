"""The entries of a log as one piece: compressed, and encrypted if there is a key.

A piece is one byte that names its form, and the rest: `z`, zlib; or `e`, a nonce of 12 bytes and AES-256-GCM of the zlib, with
the stream's id and the piece's name as associated data: a piece that was copied to another row does not decrypt.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from shared.errors import ArchiveAway, Unusable
from shared.events import Entry
from shared.ids import EventId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_COMPRESSED, _ENCRYPTED = b"z", b"e"
_LEVEL = 1
"""Answers shrink to a third at level 1, and by a tenth more at level 6, which takes three times as long."""
_NONCE_BYTES, _KEY_BYTES = 12, 32
_UNPACKED_BYTES_MAX = 512 << 20
"""Far more than a log of the largest size that the settings are meant for; so that a damaged piece cannot fill the memory."""


def packed_entries(entries: Iterable[Entry]) -> bytes:
    """Returns the entries, one after the other: a line with id, field and the value's length, then the value and a line feed."""
    return b"".join(
        [b"%d-%d %b %d\n%b\n" % (*event_id, field, len(value), value) for event_id, field, value in entries]
    )


def unpacked_entries(packed: bytes) -> list[Entry]:
    """Returns the entries that `packed_entries` has written. Raises ValueError."""
    entries, at = [], 0
    while at < len(packed):
        end_of_line = packed.index(b"\n", at)
        event_id, field, length = packed[at:end_of_line].split(b" ")
        start = end_of_line + 1
        at = start + int(length)
        entries.append(Entry(EventId.of(event_id), field, packed[start:at]))
        at += 1
    return entries


def packed_fields(fields: Mapping[bytes, bytes]) -> bytes:
    """Returns a hash of Redis as `packed_entries` would write it."""
    return packed_entries(Entry(EventId(0, index), name, value) for index, (name, value) in enumerate(fields.items()))


class Pieces:
    """Makes pieces, and opens them. `keys` as in MIDSTREAM_ARCHIVE_KEY. Raises Unusable."""

    def __init__(self, keys: str) -> None:
        self._ciphers = [_cipher(key.strip()) for key in keys.split(",") if key.strip()]

    def closed(self, stream_id: str, name: str, packed: bytes) -> bytes:
        """Returns a piece: for each stream and name, one."""
        compressed = zlib.compress(packed, _LEVEL)
        if not self._ciphers:
            return _COMPRESSED + compressed
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _ENCRYPTED + nonce + self._ciphers[0].encrypt(nonce, compressed, _associated(stream_id, name))

    def opened(self, stream_id: str, name: str, piece: bytes) -> bytes:
        """Returns what `closed` was given. Raises ArchiveAway for what cannot be decrypted or decompressed."""
        form, compressed = piece[:1], piece[1:]
        if form == _ENCRYPTED:
            compressed = self._decrypted(stream_id, name, compressed)
        elif form != _COMPRESSED:
            raise ArchiveAway(f"the archive has stream {stream_id} in an unknown form")
        try:
            decompressor = zlib.decompressobj()
            packed = decompressor.decompress(compressed, _UNPACKED_BYTES_MAX)
        except zlib.error as error:
            raise ArchiveAway(f"the archive's piece of stream {stream_id} is damaged: {error}") from None
        if not decompressor.eof:
            raise ArchiveAway(f"the archive's piece of stream {stream_id} is damaged: it has no end")
        return packed

    def _decrypted(self, stream_id: str, name: str, encrypted: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        nonce, rest = encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                decrypted = cipher.decrypt(nonce, rest, _associated(stream_id, name))
            except InvalidTag:
                continue
            return decrypted
        raise ArchiveAway(f"no key of MIDSTREAM_ARCHIVE_KEY decrypts stream {stream_id}")


def _associated(stream_id: str, name: str) -> bytes:
    return f"{stream_id} {name}".encode()


def _cipher(key: str) -> AESGCM:
    try:
        raw = base64.b64decode(key, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise Unusable("MIDSTREAM_ARCHIVE_KEY must be 32 bytes in base64, as `openssl rand -base64 32` prints")
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise Unusable(
            "MIDSTREAM_ARCHIVE_KEY needs a package that is missing: pip install 'midstream[archive]'"
        ) from None
    return AESGCM(raw)

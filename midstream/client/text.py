"""The text of an answer while it comes. An event costs no copy of it: the text is put together when somebody asks."""

from __future__ import annotations


class _Pieces:
    """The pieces of text of one attempt, each with its offset. Pieces are only added: events share them."""

    __slots__ = ("known", "offsets", "texts")

    def __init__(self, offsets: list[int], texts: list[str]) -> None:
        self.offsets = offsets
        self.texts = texts
        self.known = (0, "")
        """So many pieces, put together. One tuple, so that threads that read it see both or neither."""

    def joined(self, count: int) -> str:
        known_count, text = self.known
        if count < known_count:
            return "".join(self.texts[:count])
        if count > known_count:
            text += "".join(self.texts[known_count:count])
            self.known = (count, text)
        return text


class TextSoFar:
    """The text as it stood at one event: `str` gives it. Made by `GrowingText`."""

    __slots__ = ("_count", "_pieces")

    def __init__(self, pieces: _Pieces | None = None) -> None:
        self._pieces = pieces or _Pieces([], [])
        self._count = len(self._pieces.texts)

    def __str__(self) -> str:
        return self._pieces.joined(self._count)


class GrowingText:
    """The text of an answer, which grows by pieces and loses those that an attempt takes back."""

    def __init__(self) -> None:
        self._pieces = _Pieces([], [])

    @property
    def next_offset(self) -> int:
        """The offset of an increment that has no id."""
        return self._pieces.offsets[-1] + 1 if self._pieces.offsets else 1

    def add(self, offset: int, piece: str) -> None:
        """Adds the text of the increment at this offset, and drops what stood there or behind."""
        self.keep(offset - 1)
        self._pieces.offsets.append(offset)
        self._pieces.texts.append(piece)

    def keep(self, offset: int) -> None:
        """Drops the increments after this offset. Earlier events keep the text that they had."""
        offsets = self._pieces.offsets
        count = len(offsets)
        while count and offsets[count - 1] > offset:
            count -= 1
        if count < len(offsets):
            self._pieces = _Pieces(offsets[:count], self._pieces.texts[:count])

    def now(self) -> TextSoFar:
        return TextSoFar(self._pieces)

"""For a generator of your own, beyond texts and own events (docs/how-to/your-own-generator.md).

from midstream.generator import Delta, Finish, TryLater
"""

from producer.yields import Delta, Finish, Never, Progress, SoFar, TryLater, stop_requested

__all__ = ("Delta", "Finish", "Never", "Progress", "SoFar", "TryLater", "stop_requested")

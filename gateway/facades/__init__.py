"""The shapes in which a log is shown."""

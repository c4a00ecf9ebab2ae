"""The bench's processes: those that are measured, and those that measure and take orders over pipes."""

"""The console at /, and the overview of all streams and processes that it shows."""

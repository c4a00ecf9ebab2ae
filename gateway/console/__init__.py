"""The console at /, and what feeds it: the overview of all streams and processes."""

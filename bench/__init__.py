"""Measuring: load, publisher, a peer to compare with, and the workloads. `midstream bench`; docs/how-to/measure.md.

Knows Midstream from outside alone: HTTP, the log in Redis, `python -m gateway` and `python -m producer`.
"""

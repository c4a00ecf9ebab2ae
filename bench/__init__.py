"""`midstream bench`: load generators, a publisher, a peer to compare with, and the workloads (docs/how-to/measure.md).

Uses Midstream from outside only: HTTP, the log in Redis, `python -m gateway` and `python -m producer`.
"""

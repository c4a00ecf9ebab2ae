"""Tests. unit: no I/O; contract: one suite for every backend; integration: real parts; e2e: real processes and clients."""

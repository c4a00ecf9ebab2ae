"""A long run of all parts under seeded faults, checked against exact invariants: `python -m tests.stress --seed N --minutes M`.

`history` has the invariants, without I/O; `proxy` and `chaos` cause the faults; `plan` chooses the streams; `readers` read
them; `fleet` has the processes; `run` is the whole run. Times are real, so a seed repeats the choices, not the interleaving.
"""

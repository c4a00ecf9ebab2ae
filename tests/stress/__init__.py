"""A long run of all parts under seeded faults, checked against exact invariants: `python -m tests.stress --seed N --minutes M`.

`history` says what must hold, without I/O; `proxy` and `chaos` do the damage; `plan` orders the streams; `readers` read
them; `fleet` is the processes; `run` puts it together. Times are real, so a seed repeats the choices, not the interleaving.
"""

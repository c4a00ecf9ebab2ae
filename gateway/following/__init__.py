"""From one log to encoded events.

A token's way: `tails` (Redis pushes an entry, `_on_push`) ─► `tail` (one followed stream) ─► `ring` (its newest events,
encoded for one face) ─► `gateway.delivery`. Beside it: `token_runs` checks what is read of a log, many entries at a time;
`pages` has what is older than the rings; `silence_checks` finds what no push told; `endings` ends streams that nobody
writes any more; `followed_streams` is the list of tails, and what is remembered when one has gone.
"""

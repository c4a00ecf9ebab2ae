"""From encoded events to sockets.

A token's last steps: `delivery` (`on_new`, `_flush`) ─► `reader` (a cursor into a ring) ─► its `Sink`, the socket. Beside
it: `catch_up` brings a reader through history to the ring; `flush_pace` says how often to flush; `connection_ages` ends
connections that have lasted long enough; `ledger` notes for the receipts what was sent.
"""

"""From encoded events to sockets: readers, their way through history, the pace of flushes, the ledger."""

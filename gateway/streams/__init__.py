"""The operations on streams that all APIs share.

streams         state, receipt, cancel, delete
creation        the first entry of a log, and its request's way to a worker or an external writer
stream_logs     reads logs: only their owner's, in bounded time, and also those that have left Redis for the archive
"""

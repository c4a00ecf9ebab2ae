"""Streams that other programs write, and generated answers for whoever reads them so: the Durable Streams protocol, version 1.0.

`durable` has the routes; `create`, `append`, `read`, `live` and `remove` are its operations. They share `headers` (what a
request says), `found` (from a path to a stream), `messages` (from a body to messages), `offsets` and `face` (how a stream
looks on the wire). https://github.com/durable-streams/durable-streams, PROTOCOL.md
"""

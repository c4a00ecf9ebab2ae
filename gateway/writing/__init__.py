"""Streams that an external writer fills over HTTP, in place of a worker: docs/how-to/write-your-own-stream.md.

routes          requests and answers, also one long body whose lines are appended as they come
operations      their description for the OpenAPI document
writes          what an append does: where it goes, who is fenced off, what is there already
lines           from a line of JSON to an increment or an end
lost_writers    ends streams whose writer has fallen silent
"""

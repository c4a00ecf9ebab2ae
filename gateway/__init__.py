"""The gateway: from a log to a socket. Never imports the producer. Each room imports only from those below it.

__main__    server (wires one process) | supervisor (a parent of several)    app (dispatch, errors)
facades     other APIs: openai, responses, ai_sdk, durable   writing: streams that another program fills
api         the native API: which stream, from where         measuring, presence, tracing: of this process
delivery    from encoded events to sockets: readers          console, streams (create, state, cancel, delete)
access      who asks, by which credential; whose is what     finding, restoring: archived streams
following   from a log to encoded events: tails, rings       http: what knows HTTP and no streams
metrics, faces (how an event looks on the wire), listening (sockets), process_name

`docs/explanation/how-it-works.md` follows one token and one reconnection through them.
"""

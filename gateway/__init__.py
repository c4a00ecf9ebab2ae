"""The gateway: serves logs from Redis to any number of readers over HTTP. It keeps nothing that another gateway needs.

    __main__    one process, or several under a `supervisor`; `listening`: their sockets at one port
    server      builds the parts of one process, starts and closes them; `app`: which API a request belongs to
    facades/    APIs that clients already speak: OpenAI's and the AI SDK's
    api/        the native API: follow, text, WebSocket, readiness
    console/    the web page at `/`, and the overview that feeds it
    delivery/   from encoded events to sockets: readers, catching up, the pace of writes, receipts
    following/  from a log to encoded events: subscriptions, rings, pages, checks of silent streams
    streams     create, state, cancel, delete; `faces`: how an event looks on the wire
    http/       what knows HTTP and no streams

`docs/explanation/how-it-works.md` follows one token and one reconnection through them.
"""

"""Access: who asks, by which credential, and whose streams are whose. Knows HTTP and Redis, and no part that serves streams.

admission (each request, before its handler)    mode (whether authentication is on)
authenticators (from a token to a principal)    owners (whose a stream is)
"""

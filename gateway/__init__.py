"""The gateway: from a log to a socket. Never imports the producer."""

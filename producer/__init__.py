"""Workers: from a queued request to its terminal event. Never imports the gateway."""

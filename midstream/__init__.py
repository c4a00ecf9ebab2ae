"""The command line: the only room that may import the producer, the gateway and what they share."""

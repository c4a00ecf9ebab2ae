"""The command line. Only this package may import the producer, the gateway and `shared` together."""

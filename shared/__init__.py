"""The log and its words: what workers and gateways must agree on. Imports neither side."""

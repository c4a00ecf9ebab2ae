"""The native API: /v1/streams in every representation, /stream, the probe, health and the documentation."""

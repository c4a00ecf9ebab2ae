"""What clients do with streams, whichever API they use."""

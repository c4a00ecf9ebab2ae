"""What tests share: real servers to start and kill, a provider to script, and waiting without sleeping."""

"""OpenAI's Chat Completions and Models, over the same log."""

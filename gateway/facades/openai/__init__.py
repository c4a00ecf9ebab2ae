"""OpenAI's Chat Completions and Models APIs."""

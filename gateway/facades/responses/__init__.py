"""OpenAI's Responses, over the same log."""

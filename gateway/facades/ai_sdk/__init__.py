"""The AI SDK's useChat, over the same log."""

"""The HTTP API that `useChat` of the AI SDK calls."""

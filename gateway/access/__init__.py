"""Access: who asks, and how much they may use."""

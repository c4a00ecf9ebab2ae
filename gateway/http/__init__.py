"""HTTP, and nothing of streams: connections and their bounds, requests, problem documents, CORS, ETags."""

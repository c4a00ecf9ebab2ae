"""HTTP, and nothing of streams: connections and their bounds, requests, routes, cursors, problem documents, CORS, ETags."""

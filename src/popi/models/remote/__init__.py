"""Models behind an API: chat APIs, batches, vLLM as a scorer, and the one HTTP client."""

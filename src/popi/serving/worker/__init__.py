"""The worker: renews summaries in the background, and says where their statements come from."""

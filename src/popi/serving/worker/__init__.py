"""The worker: renews summaries in the background, and finds which signals their statements rest on."""

"""Models in this process: loading, chat templates, GGUF, adapters, the probe at load."""

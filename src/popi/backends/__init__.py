"""Where models come from: the only place that loads weights."""

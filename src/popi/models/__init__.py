"""Where models come from: the only place that loads weights, and the only outgoing HTTP."""

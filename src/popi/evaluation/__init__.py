"""What a run is worth on held-out users: methods side by side, metrics with intervals, a report from files."""

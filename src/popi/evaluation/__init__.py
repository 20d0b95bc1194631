"""What a run is worth on held-out users: methods side by side, judged responses, intervals, a report from files."""

"""What befalls a training run under torture, and what counts as surviving it."""

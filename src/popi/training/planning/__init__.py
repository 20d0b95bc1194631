"""What a run will do, and whether it fits, before a model is loaded."""

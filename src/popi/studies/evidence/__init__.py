"""How much evidence a summary needs, and what is done without any."""

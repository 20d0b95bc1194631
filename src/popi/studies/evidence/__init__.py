"""How much evidence a summary needs, and what happens without any."""

"""User signals: their types, and how they become a prompt."""

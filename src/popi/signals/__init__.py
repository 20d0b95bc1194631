"""User signals: their types, their files, the checks of those files, and how they become a prompt."""

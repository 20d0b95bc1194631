"""Side effects that personalisation must not have: wrong facts, agreement with wrong opinions, copied private text."""

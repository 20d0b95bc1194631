"""What personalising must not do: spoil facts, agree with wrong opinions, carry private text over."""

"""A chat app around the official Anthropic client, with popi's gateway in front of the API.

POPI_KEY=popi_... python examples/anthropic_app/app.py
"""

import os

from anthropic import Anthropic

client = Anthropic(
    api_key=os.environ["POPI_KEY"],
    base_url=os.environ.get("POPI_URL", "http://localhost:8600"),  # without /v1: this client adds it
)


def answer(question: str, user_id: str) -> str:
    """Answer a question of one of the app's users."""
    reply = client.messages.create(
        model=os.environ.get("MODEL", "claude-sonnet-4-5"),
        max_tokens=1024,
        metadata={"user_id": user_id},  # the gateway reads it, and sends a hash of it upstream
        system="You are a kind helper.",
        messages=[{"role": "user", "content": question}],
    )
    return "".join(block.text for block in reply.content if block.type == "text")


if __name__ == "__main__":
    print(answer(input("Ask: "), user_id=os.environ.get("USER", "ada")))

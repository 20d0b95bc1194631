"""A typical chat app: a few lines around the official OpenAI client."""

import os

from openai import OpenAI

client = OpenAI(
    api_key=os.environ["POPI_KEY"],
    base_url=os.environ.get("POPI_URL", "http://localhost:8600") + "/v1",
)


def answer(question: str, user_id: str) -> str:
    """Answer a question of one of the app's users."""
    reply = client.chat.completions.create(
        model=os.environ.get("MODEL", "gpt-4o-mini"),
        safety_identifier=user_id,
        messages=[{"role": "system", "content": "You are a kind helper."}, {"role": "user", "content": question}],
    )
    return reply.choices[0].message.content or ""


if __name__ == "__main__":
    print(answer(input("Ask: "), user_id=os.environ.get("USER", "ada")))

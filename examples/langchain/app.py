"""A LangChain chain whose model is behind popi's gateway; the user comes with each call.

pip install langchain-openai
POPI_KEY=popi_... python examples/langchain/app.py
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model=os.environ.get("MODEL", "gpt-4o-mini"),
    api_key=os.environ["POPI_KEY"],
    base_url=os.environ.get("POPI_URL", "http://localhost:8600") + "/v1",
)
prompt = ChatPromptTemplate.from_messages([("system", "You are a kind helper."), ("human", "{question}")])


def answer(question: str, user_id: str) -> str:
    """Answer a question of one of the app's users."""
    # Bound to the call and not to the model: one model serves all users.
    chain = prompt | model.bind(extra_headers={"x-popi-user": user_id}) | StrOutputParser()
    return chain.invoke({"question": question})


if __name__ == "__main__":
    print(answer(input("Ask: "), user_id=os.environ.get("USER", "ada")))

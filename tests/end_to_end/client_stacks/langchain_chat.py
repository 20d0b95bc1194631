"""LangChain's chat models: asked, streamed and with tools."""

import json
import os

from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, key = os.environ["GATEWAY"], os.environ["KEY"]
user = {"x-popi-user": "ann"}


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return "sunny"


openai = ChatOpenAI(model="m", base_url=f"{url}/v1", api_key=key, default_headers=user, max_retries=0)
responses = ChatOpenAI(
    model="m", base_url=f"{url}/v1", api_key=key, default_headers=user, use_responses_api=True, max_retries=0
)
claude = ChatAnthropic(model="m", base_url=url, api_key=key, default_headers=user, max_retries=0)
asked = [("system", "You are kind."), ("human", "hello")]
print(
    json.dumps(
        {
            "chat": openai.invoke(asked).text,
            "stream": "".join(chunk.text for chunk in openai.stream(asked)),
            "tool": openai.bind_tools([weather]).invoke("What is the weather in Bonn?").tool_calls[0]["args"],
            "user field": ChatOpenAI(
                model="m", base_url=f"{url}/v1", api_key=key, model_kwargs={"user": "ann"}, max_retries=0
            )
            .invoke(asked)
            .text,
            "responses": responses.invoke(asked).text,
            "messages": claude.invoke(asked).text,
            "messages stream": "".join(chunk.text for chunk in claude.stream(asked)),
        }
    )
)

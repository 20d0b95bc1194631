"""pydantic-ai's agents: run, streamed, with a tool and a typed result."""

import asyncio
import json
import os

import anthropic
import openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

url, key = os.environ["GATEWAY"], os.environ["KEY"]
user = {"x-popi-user": "ann"}


class Place(BaseModel):
    """A place."""

    place: str


async def main() -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, default_headers=user, max_retries=0)
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
    claude = anthropic.AsyncAnthropic(base_url=url, api_key=key, default_headers=user, max_retries=0)
    agent = Agent(model, system_prompt="You are kind.")
    async with agent.run_stream("hello") as streamed:
        pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
    typed = await Agent(model, output_type=Place, system_prompt="You are kind.").run("What is the weather in Bonn?")
    messages = Agent(AnthropicModel("m", provider=AnthropicProvider(anthropic_client=claude)), system_prompt="Be kind.")
    answers = {
        "chat": (await agent.run("hello")).output,
        "stream": "".join(pieces),
        "tool": typed.output.model_dump(),
        "messages": (await messages.run("hello")).output,
    }
    print(json.dumps(answers))


asyncio.run(main())

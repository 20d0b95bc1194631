"""LiteLLM's SDK, for OpenAI's and Anthropic's API."""

import json
import os

import litellm

url, key = os.environ["GATEWAY"], os.environ["KEY"]
asked = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "hello"}]
chat = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": key, "messages": asked, "num_retries": 0}
messages = chat | {"model": "anthropic/claude-m", "api_base": url}
user = {"x-popi-user": "ann"}
print(
    json.dumps(
        {
            # It drops `user` of models that it does not know, unless told not to.
            "chat": litellm.completion(**chat, user="ann", allowed_openai_params=["user"]).choices[0].message.content,
            "stream": "".join(
                chunk.choices[0].delta.content or ""
                for chunk in litellm.completion(**chat, extra_headers=user, stream=True)
            ),
            "messages": litellm.completion(**messages, extra_headers=user).choices[0].message.content,
        }
    )
)

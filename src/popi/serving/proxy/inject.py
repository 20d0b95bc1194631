"""Where the block goes in each API.

In every API the app's own text comes first, which is the same for all users; then the block, which is the same until
the summary changes; then the conversation. This order suits upstream prompt caches, which match prefixes.

Chat completions: at the end of the client's system message. A separate message before it would make prompts differ
between users from the first token on, so that caches could not share the app's system prompt; a second system message
after it is refused by many chat templates ("system message must be at the beginning"). If the conversation starts with
several system (or developer) messages, the block goes into the last of them. If it has none, a system message with just
the block is added in front.

Responses: the app's text may be in three places, which the model reads in this order: `instructions`, the stored
`prompt`, and system or developer messages at the beginning of `input`. The block goes after the last of these: into the
last such message; without one but with a `prompt`, into a separate developer message in front of `input`; otherwise at
the end of `instructions`. Instructions apply to one request and `previous_response_id` does not carry them over, so the
block appears exactly once, and pausing personalisation takes effect within a conversation. If the app's text is in an
earlier response, the gateway can't see it, and the block goes into `instructions` too: as an item of `input` it would
be stored again with every turn.

Messages (Anthropic): at the end of `system`: appended if that is a string, an extra text block if it is a list. The
client's `cache_control` breakpoints are before it and still cover the same text. The block gets no breakpoint: a
request may have four, and they belong to the client.
"""

from typing import Any, Literal

from popi.serving.proxy.ids import check_spelling

Api = Literal["chat", "responses", "messages"]


def inject(api: Api, body: dict[str, Any], block: str) -> dict[str, Any] | None:
    """Put the block into a request.

    Args:
        api: the request's API.
        body: its JSON; may be changed in place.
        block: the text to insert.

    Returns:
        The body with the block; None, with the body unchanged, if the body does not have the API's format. The upstream
        will report what is wrong with it.

    Raises:
        Refusal: 400, a message's `role` or `content` is not spelt in lower case.
    """
    if api == "chat":
        return _in_messages(body, block)
    if api == "responses" and (body.get("prompt") is not None or _system_message(body.get("input")) is not None):
        return _in_input(body, block)
    name = "instructions" if api == "responses" else "system"
    value = body.get(name)
    if name not in body:
        return {name: block, **body}
    if value is None:
        body[name] = block
        return body
    return None if isinstance(value, list) and api != "messages" else _at_the_end(body, name, block)


def _in_messages(body: dict[str, Any], block: str) -> dict[str, Any] | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return None
    system = _system_message(messages)
    if system is None:
        messages.insert(0, {"role": "system", "content": block})
        return body
    return body if _at_the_end(system, "content", block) else None


def _in_input(body: dict[str, Any], block: str) -> dict[str, Any] | None:
    """Insert into the last system message at the beginning of `input`, or as a message in front of it."""
    items = body.get("input")
    if (system := _system_message(items)) is not None:
        return body if _at_the_end(system, "content", block, "input_text") else None
    message = {"role": "developer", "content": block}
    if items is None:
        body["input"] = [message]
    elif isinstance(items, str):
        body["input"] = [message, {"role": "user", "content": items}]
    elif isinstance(items, list):
        items.insert(0, message)
    else:
        return None
    return body


def _system_message(messages: Any) -> dict[str, Any] | None:
    """The last of the system or developer messages at the beginning of a list.

    Raises:
        Refusal: 400, one of these messages has `role` or `content` not spelt in lower case.
    """
    system = None
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            break
        check_spelling(message, ("role", "content"))
        if message.get("role") not in ("system", "developer"):
            break
        system = message
    return system


def _at_the_end(holder: dict[str, Any], name: str, block: str, part: str = "text") -> dict[str, Any] | None:
    """Append to a string, or to a list as another part of type `part`."""
    value = holder.get(name)
    # Some servers join a list's texts without a separator.
    text = "\n\n" + block if value else block
    if isinstance(value, str):
        holder[name] = value + text
    elif isinstance(value, list):
        value.append({"type": part, "text": text})
    else:
        return None
    return holder

"""Where the block goes in each API.

Chat completions: behind the client's own system message, inside it. A message of its own before it would give every
user a prompt of their own from the first token on, and upstream prompt caches, which match prefixes, could no longer
share the app's system prompt between users; a second system message behind it is refused by many chat templates
("system message must be at the beginning"). Of several system (or developer) messages in a row at the beginning the
last is taken, for the same reason. Where there is none, one with the block alone is put first.

Responses: the app's text may stand in three places, and the model reads them in this order: `instructions` and the
stored `prompt` first, then system or developer messages at the beginning of `input`. So the block goes behind the last
of these: into the last such message; without one but with a `prompt`, into a developer message of its own before the
rest of `input`; else behind `instructions`. They hold for one request and are not carried over by
`previous_response_id`, so that there the block is present exactly once, and a pause holds at once in a conversation
that is under way, too. Where an earlier response holds the app's text and this request holds none, the gateway can't
see it, and the block stands in `instructions` as well: as an item of `input` it would be stored again with every turn.

Messages (Anthropic): behind `system`: in it where it is a string, as a block of its own where it is a list. The
client's `cache_control` breakpoints stand before it, and keep covering what they covered. The block gets none of its
own: a request may have four, and they are the client's.

In all three the text before the block is the app's and the same for all users; the block is the same until the
summary changes; then comes the conversation.
"""

from typing import Any, Literal

from popi.serving.proxy.ids import check_spelling

Api = Literal["chat", "responses", "messages"]


def inject(api: Api, body: dict[str, Any], block: str) -> dict[str, Any] | None:
    """Put the block into a request.

    Args:
        api: which API's request it is.
        body: its JSON; may be changed in place.
        block: what to put in.

    Returns:
        The body with the block; None where it has not the shape that this API asks for, and is left as it was: the
        upstream will say what is wrong with it.

    Raises:
        Refusal: 400, a message's `role` or `content` in other case.
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
    """Into the last system message at the beginning of `input`, or a message of its own there."""
    given = body.get("input")
    if (system := _system_message(given)) is not None:
        return body if _at_the_end(system, "content", block, "input_text") else None
    own = {"role": "developer", "content": block}
    if given is None:
        body["input"] = [own]
    elif isinstance(given, str):
        body["input"] = [own, {"role": "user", "content": given}]
    elif isinstance(given, list):
        given.insert(0, own)
    else:
        return None
    return body


def _system_message(messages: Any) -> dict[str, Any] | None:
    """The last of the system or developer messages that a list begins with.

    Raises:
        Refusal: 400, the `role` or `content` of one that is looked at is in other case.
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
    """Behind a text, or as one more text of a list, whose type is `part`."""
    value = holder.get(name)
    # Some servers join a list's texts with nothing between them.
    after = "\n\n" + block if value else block
    if isinstance(value, str):
        holder[name] = value + after
    elif isinstance(value, list):
        value.append({"type": part, "text": after})
    else:
        return None
    return holder

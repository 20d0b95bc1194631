"""Where the block goes in each API, as an edit of the body's bytes.

Chat completions: behind the client's own system message, inside it. A message of its own before it would give every
user a prompt of their own from the first token on, and upstream prompt caches, which match prefixes, could no longer
share the app's system prompt between users; a second system message behind it is refused by many chat templates
("system message must be at the beginning"). Of several system (or developer) messages in a row at the beginning the
last is taken, for the same reason. Where there is none, one with the block alone is put first.

Responses: behind `instructions`. They hold for one request and are not carried over by `previous_response_id`, so the
block is there exactly once; as an input item it would be stored again with every turn.

Messages (Anthropic): behind `system`: in it where it is a string, as a block of its own where it is a list. The
client's `cache_control` breakpoints stand before it, and keep covering what they covered. The block gets none of its
own: a request may have four, and they are the client's.

In all three the text before the block is the app's and the same for all users; the block is the same until the
summary changes; then comes the conversation.
"""

from typing import Literal

from popi.serving.proxy.block import Block
from popi.serving.proxy.members import Edit, Member, item, last, read_object

Api = Literal["chat", "responses", "messages"]


def summary_edit(api: Api, text: str, start: int, members: list[Member], block: Block) -> Edit | None:
    """The edit that puts the block into a request.

    Args:
        api: which API's request it is.
        text: the body, as `body_text` gives it.
        start: where its object begins.
        members: of that object.
        block: what to put in.

    Returns:
        None where the request has not the shape that this API asks for: the upstream will say what is wrong with it.
    """
    if api == "chat":
        return _in_messages(text, last(members, "messages"), block)
    name = "instructions" if api == "responses" else "system"
    member = last(members, name)
    if member is None:
        comma = b"," if members else b""
        return Edit(start + 1, start + 1, b'"%b":"%b"%b' % (name.encode(), block.alone, comma))
    if member.value is None:
        return Edit(member.start, member.end, b'"%b"' % block.alone)
    if isinstance(member.value, list) and api != "messages":
        return None
    return _at_the_end(member, block)


def _in_messages(text: str, messages: Member | None, block: Block) -> Edit | None:
    if messages is None or not isinstance(messages.value, list) or not messages.value:
        return None
    systems = 0
    for message in messages.value:
        if not isinstance(message, dict):
            return None
        if message.get("role") not in ("system", "developer"):
            break
        systems += 1
    if not systems:
        at = messages.start + 1
        return Edit(at, at, b'{"role":"system","content":"%b"},' % block.alone)
    system, _ = read_object(text, item(text, messages.start, systems - 1))
    content = last(system, "content")
    return None if content is None else _at_the_end(content, block)


def _at_the_end(member: Member, block: Block) -> Edit | None:
    """Inside the closing quote of a string, or as one more text before the closing bracket of a list."""
    at = member.end - 1
    if isinstance(member.value, str):
        return Edit(at, at, block.after if member.value else block.alone)
    if isinstance(member.value, list):
        # Some servers join a list's texts with nothing between them.
        first, content = (b",", block.after) if member.value else (b"", block.alone)
        return Edit(at, at, b'%b{"type":"text","text":"%b"}' % (first, content))
    return None

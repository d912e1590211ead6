"""Estimates of token counts from text, for reservations and for servers that do not report what they counted.

Words count one token per 4 letters, numbers one per 2 digits, and everything else one per character. Tokenisers in use
need fewer for English and JSON, so that an estimate is rather too high.
"""

import json
import math
import re

from .messages import Reply, Request

_PIECES = re.compile(r"[A-Za-z]{1,4}|\d{1,2}|\S")
PER_MESSAGE = 8  # the marks of the chat format around a message
FOR_TOOLS = 400  # the provider's own instructions for tool calls (Anthropic: 290 to 530 by model)
RESERVE_MARGIN = 1.3  # the newest tokenisers of Anthropic count up to 30 % more than the older ones


def estimate_tokens(text: str) -> int:
    """About the number of tokens of a text."""
    return len(_PIECES.findall(text))


def estimate_input(request: Request) -> int:
    """About the number of input tokens of a request."""
    texts = [message.text for message in request.messages]
    texts += [call.name + call.raw for message in request.messages for call in message.calls]
    texts += [f"{tool.name} {tool.description} {json.dumps(dict(tool.parameters))}" for tool in request.tools]
    overhead = PER_MESSAGE * len(request.messages) + (FOR_TOOLS if request.tools else 0)
    return sum(map(estimate_tokens, texts)) + overhead


def reserved_input(request: Request) -> int:
    """The input tokens to reserve for a request: more than it is likely to need."""
    return math.ceil(RESERVE_MARGIN * estimate_input(request))


def estimate_output(reply: Reply) -> int:
    """About the number of output tokens of a reply, without hidden reasoning, of which nothing is known."""
    return estimate_tokens(reply.text) + sum(estimate_tokens(call.name + call.raw) for call in reply.calls)

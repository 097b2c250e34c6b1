"""What passes between the guard and the courier: one question at a time, one datagram each way, under a number.

An answer to a question that was given up carries an old number and means nothing.
"""

import msgspec

RENEW, ACQUIRE, REST = "renew", "acquire", "rest"
# `hello`: the courier's process, unasked. `left`: the node is no member any more, unasked.
DONE, REFUSED, FAILED, HELLO, LEFT = "done", "refused", "failed", "hello", "left"

MAX_BYTES = 4096


class Ask(msgspec.Struct, frozen=True, array_like=True):
    number: int
    kind: str
    incarnation: int
    sent_ms: int
    pause_ms: int
    takeover_ms: int
    deadline_s: float
    # Of renewals.
    interval_ms: int = 0


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`value`: the incarnation of an acquired lease, or the courier's process. `cause`: of a failure. `next_in_ms`: when the
    store would like the next renewal, counted from the sending of this one; 0: whenever."""

    number: int
    kind: str
    value: int = 0
    cause: str = ""
    next_in_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_asks = msgspec.msgpack.Decoder(Ask)
_answers = msgspec.msgpack.Decoder(Answer)


def encode(message: Ask | Answer) -> bytes:
    return _encoder.encode(message)[:MAX_BYTES]


def decode_ask(datagram: bytes) -> Ask:
    """Raises msgspec.DecodeError."""
    return _asks.decode(datagram)


def decode_answer(datagram: bytes) -> Answer:
    """Raises msgspec.DecodeError."""
    return _answers.decode(datagram)

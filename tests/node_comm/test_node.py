"""Several questions to one rank at once: each reply goes to whoever asked for it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from node_comm import memory
from node_comm.errors import Disconnected
from node_comm.message import Message
from node_comm.node import Node


class Question(Message, frozen=True):
    number: int


class Reply(Message, frozen=True):
    number: int


def in_pair(asks, answers):
    """Run `asks(node)` on rank 0 and `answers(node)` on rank 1; what the first returns."""

    async def main(transport):
        node = Node(transport, [Question, Reply])
        await node.start()
        try:
            return await asyncio.wait_for((answers if transport.rank else asks)(node), 20)
        finally:
            await node.stop()

    return memory.run(main, 2)[0]


async def answer_backwards(node):
    """Take three questions, and answer the last one first."""
    incoming = [await node.recv() for _ in range(3)]
    for question in reversed(incoming):
        number = question.message.number
        await node.reply(question, Reply(number=number), np.full(4, number, np.float32))
    assert [question.message.number for question in incoming] == [1, 2, 3]
    await node.recv()


def test_replies_find_their_questions_in_any_order():
    async def ask(node):
        targets = [np.zeros(4, np.float32) for _ in range(3)]
        replies = [await node.ask(1, Question(number=number), into=target) for number, target in enumerate(targets, 1)]
        answers = [await reply for reply in replies]
        await node.send(1, Question(number=0))
        return [message.number for message, _ in answers], [target.tolist() for target in targets]

    assert in_pair(ask, answer_backwards) == ([1, 2, 3], [[1.0] * 4, [2.0] * 4, [3.0] * 4])


def test_a_reply_that_is_wanted_no_more_is_written_nowhere():
    """Who cancels the future can use its array for something else."""
    async def ask(node):
        given_up, other = np.zeros(4, np.float32), np.zeros(4, np.float32)
        replies = [await node.ask(1, Question(number=1)), await node.ask(1, Question(number=2), into=given_up),
                   await node.ask(1, Question(number=3), into=other)]
        replies[1].cancel()
        await replies[0]  # the last of the answers
        await node.send(1, Question(number=0))
        return given_up.tolist(), other.tolist()

    assert in_pair(ask, answer_backwards) == ([0.0] * 4, [3.0] * 4)


def test_what_ends_the_node_ends_every_question():
    async def ask(node):
        replies = [await node.ask(1, Question(number=number)) for number in (1, 2)]
        node.fail(Disconnected("it is over"))
        for reply in replies:
            with pytest.raises(Disconnected, match="it is over"):
                await reply
        with pytest.raises(Disconnected, match="it is over"):
            await node.ask(1, Question(number=3))

    async def wait(node):
        with pytest.raises(Disconnected):
            for _ in range(3):
                await node.recv()

    in_pair(ask, wait)

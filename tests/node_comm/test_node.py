"""Several questions to one rank at once: each reply goes to whoever asked for it."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

from node_comm import memory
from node_comm.errors import Disconnected
from node_comm.message import Message
from node_comm.node import Node, give_up


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


def test_what_goes_with_the_next_message_comes_ahead_of_it_in_one_frame():
    """Of a question, a reply and a flush alike; another rank's next message takes nothing along."""
    frames = []

    async def ask(node):
        send = node.transport.send

        async def watched(dest, header, buffer=None):
            frames.append(dest)
            await send(dest, header, buffer)

        node.transport.send = watched
        for number in (1, 2):
            node.send_with_next(1, Question(number=number))
        await node.send(0, Question(number=9))
        assert frames == [0]
        reply = await node.ask(1, Question(number=3))
        first = await node.recv()
        assert (first.source, first.message, first.request) == (0, Question(number=9), 0)
        told = await node.recv()  # what went along with the reply
        answer, _ = await reply
        for number in (4, 5):
            node.send_with_next(1, Question(number=number))
        await node.flush()
        await node.flush()
        assert frames == [0, 1, 1]
        return told.message.number, answer.number

    async def answer(node):
        incoming = [await node.recv() for _ in range(3)]
        assert [each.message.number for each in incoming] == [1, 2, 3]
        assert [each.request > 0 for each in incoming] == [False, False, True]
        node.send_with_next(0, Question(number=7))
        await node.reply(incoming[2], Reply(number=8))
        assert [(await node.recv()).message.number for _ in range(2)] == [4, 5]

    assert in_pair(ask, answer) == (7, 8)


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


def test_recv_gives_what_came_before_the_end_and_then_raises_again_and_again():
    async def ask(node):
        for number in (1, 2):
            await node.send(1, Question(number=number))
        with pytest.raises(Disconnected):
            await node.recv()

    async def answer(node):
        while node._inbox.qsize() < 2:
            await asyncio.sleep(0.001)
        node.fail(Disconnected("the end"))
        node.fail(Disconnected("another end"))
        numbers = [(await node.recv()).message.number for _ in range(2)]
        for _ in range(3):
            with pytest.raises(Disconnected, match="the end"):
                await node.recv()
        assert numbers == [1, 2]

    in_pair(ask, answer)


def test_recv_and_attend_end_with_the_node():
    async def ask(node):
        never = asyncio.get_running_loop().create_future()
        waits = [asyncio.create_task(node.recv()), asyncio.create_task(node.attend(never)),
                 asyncio.create_task(node.attend(asyncio.sleep(20)))]
        await asyncio.sleep(0)
        node.fail(Disconnected("the end"))
        found = await asyncio.gather(*waits, return_exceptions=True)
        assert [str(error) for error in found] == ["the end"] * 3
        assert never.cancelled()
        with pytest.raises(Disconnected, match="the end"):
            await node.attend(asyncio.sleep(20))

    async def answer(node):
        with pytest.raises(Disconnected):
            await node.recv()

    in_pair(ask, answer)


def test_what_is_attended_no_more_is_not_reported_as_forgotten(caplog):
    """Asyncio would log an error for a gather that is cancelled, and for what fails while it is."""
    async def fail_late():
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it is cancelled")

    async def main():
        for work in (asyncio.gather(asyncio.Event().wait(), asyncio.Event().wait()), fail_late()):
            node = Node(memory.world(1)[0], [])
            attending = asyncio.create_task(node.attend(work))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            node.fail(Disconnected("the end"))
            with pytest.raises(Disconnected, match="the end"):
                await attending
            await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()
    assert not caplog.records


def test_waiting_for_orders_costs_no_task():
    """An idle rank has the node's own, and whoever waits; to attend to something is one more."""
    async def ask(node):
        before = asyncio.all_tasks()
        waiting = asyncio.create_task(node.recv())
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == {waiting}
        attending = asyncio.create_task(node.attend(asyncio.sleep(20)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks() - before) == 3
        await give_up(waiting, attending)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    async def answer(node):
        with pytest.raises(Disconnected):
            await node.recv()

    in_pair(ask, answer)


def test_give_up_cancels_waits_and_looks_at_errors(caplog):
    async def fail():
        raise ValueError("nobody wants to know")

    async def slow_to_end(ended):
        try:
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def main():
        ended: list[bool] = []
        failed, done, slow = (asyncio.ensure_future(each) for each in (fail(), asyncio.sleep(0), slow_to_end(ended)))
        await asyncio.sleep(0.01)
        await give_up(failed, done, slow)
        assert ended == [True]
        assert slow.cancelled()

    asyncio.run(main())
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("error", [None, ValueError("nobody wants to know")])
def test_give_up_what_has_all_its_parts(error):
    """S-LIFE-01: in the moment between the end of the last part and that of the whole, a loss that came then ended the run."""
    async def main():
        parts = [asyncio.get_running_loop().create_future() for _ in range(2)]
        whole = asyncio.gather(*parts)
        parts[0].set_result(None)
        await asyncio.sleep(0)
        parts[1].set_result(None) if error is None else parts[1].set_exception(error)
        assert not whole.cancel()
        assert not whole.done()
        await give_up(whole)
        assert whole.done()
        assert not whole.cancelled()

    asyncio.run(main())

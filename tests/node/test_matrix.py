"""The matrix of updates: the same bits as with all rows in one process, wherever they are, at the promised cost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from federation import ClientNode, ClientUpdate, ServerNode
from federation.core import matrix as core_matrix
from federation.core.columns import Kernel
from federation.core.matrix import LocalMatrix, run_here
from federation.core.weights import Layout, Weights
from federation.errors import RoundError
from federation.node.matrix import DistributedMatrix, take_part_in_columnwise, take_part_in_gram
from federation.node.orders import Orders
from federation.node.protocol import Collect, Columnwise, Combined, Gram, Outcome
from federation.node.round import Plan
from node_comm import Disconnected, memory
from node_comm.node import Node
from tests.node.worlds import Answers, Arrays, f32

K = 7


def layout() -> Layout:
    return Layout(["a", "scale", "b", "half", "mask", "bn.count", "empty", "bn.mean", "c"],
                  [(90, 100), (), (31,), (40,), (9,), (), (0, 3), (5,), (300,)],
                  ["float32", "float32", "float64", ml_dtypes.bfloat16, "bool", "int64", "float32", "float32", "float32"],
                  buffers=["bn.count", "bn.mean"])


def random_weights(number: int) -> Weights:
    generator = np.random.default_rng(number)
    weights = Weights.zeros(layout())
    for array in weights:
        values = generator.normal(size=array.shape)
        array[...] = values > 0 if array.dtype == bool else (10 * values).astype(array.dtype)
    return weights


START = random_weights(100)
ROWS = [random_weights(number) for number in range(K)]
COUNTS = [3, 1, 4, 1, 5, 9, 2]
NAMES = [f"client_{index}" for index in range(K)]


def spread(ranks: int, program, counts=COUNTS, transport_of=lambda transport: transport):
    """What `program(matrix)` returns on the server of a world in which client k lives on rank 1 + (3 k) % ranks."""

    async def main(transport):
        transport = transport_of(transport)
        if transport.rank == 0:
            server = ServerNode(transport=transport)
            await server.start()
            try:
                await server.wait_for_clients(K, timeout=10)
                await server.broadcast_weights(START)
                fitted = await server.fit(Plan(1, server.get_connected_clients(), needs="matrix"))
                return await program(DistributedMatrix(server, fitted))
            finally:
                await server.stop()
        node = ClientNode({"node_id": f"rank_{transport.rank}"}, transport=transport)
        for index in range(K):
            if 1 + (3 * index) % ranks == transport.rank:
                given = ROWS[index], counts[index]
                node.bind(Answers(Arrays(dict(START.items())), lambda start, context, given=given: given), NAMES[index])
        await node.connect_and_register()
        try:
            await asyncio.wait_for(node.wait(), 30)
        finally:
            await node.stop()
        return None

    return memory.run(main, ranks + 1)[0]


def local() -> LocalMatrix:
    updates = [ClientUpdate(name, row, count) for name, row, count in zip(NAMES, ROWS, COUNTS, strict=True)]
    return LocalMatrix(updates, START)


def bits(weights: Weights) -> str:
    return weights.sha256()


@pytest.fixture(params=[1, 2, 3, 5])
def ranks(request):
    return request.param


@pytest.fixture(params=[64, 4 << 20], ids=["small blocks", "one block"])
def block_bytes(request, monkeypatch):
    """Blocks of the smallest size, so that there are many, and of the usual one."""
    monkeypatch.setattr("federation.node.matrix.BLOCK_BYTES", request.param)
    monkeypatch.setattr(core_matrix, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("kernel", [Kernel("median"), Kernel("trimmed_mean", 2), Kernel("mean_around_median", 3)],
                         ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("rows", [None, [5, 0, 2, 6, 1]], ids=["all", "some"])
def test_columnwise(ranks, block_bytes, kernel, rows):
    async def program(matrix):
        out = Weights.zeros(layout())
        await matrix.columnwise(kernel, out, rows)
        return bits(out)

    assert spread(ranks, program) == run_here(program(local()))


def test_gram(ranks, block_bytes):
    """Against NumPy's products of whole rows as well."""
    async def program(matrix):
        found = await matrix.gram()
        return found.products.tolist(), found.squared_distances.tolist()

    products, distances = spread(ranks, program)
    assert (products, distances) == run_here(program(local()))
    parameters = ["a", "scale", "b", "half", "c"]
    flat = np.stack([np.concatenate([(row[name].astype(float) - START[name].astype(float)).ravel() for name in parameters])
                     for row in ROWS])
    assert np.allclose(products, flat @ flat.T, rtol=1e-13)
    assert np.allclose(distances, ((flat[:, None] - flat) ** 2).sum(axis=2), rtol=1e-13)


def test_combine(ranks):
    """The sum in exact arithmetic, buffers and integers included; coefficients of zero bring no row at all."""
    coefficients = [0.25, 0.0, -1.5, 0.125, 0.0, 2.0, 0.125]

    async def program(matrix):
        out = Weights.zeros(layout())
        await matrix.combine(coefficients, out)
        return out

    found = spread(ranks, program)
    assert bits(found) == bits(run_here(program(local())))
    for name in ("a", "b", "bn.mean"):
        begun = START[name].astype(float)
        wanted = begun + sum(c * (row[name].astype(float) - begun) for c, row in zip(coefficients, ROWS, strict=True))
        assert np.allclose(found[name], wanted, rtol=1e-6, atol=1e-6)
    wanted = START["bn.count"] + sum(c * (row["bn.count"] - START["bn.count"]) for c, row in zip(coefficients, ROWS, strict=True))
    assert found["bn.count"] == np.rint(wanted)


def test_combine_where_each_rank_adds_what_one_word_just_holds(monkeypatch):
    """From a start of zeros, a word of a rank's own row takes differences up to 1; those of seven ranks together are 7."""
    monkeypatch.setattr(f"{__name__}.START", Weights.of({"w": f32(0, 0)}))
    monkeypatch.setattr(f"{__name__}.ROWS", [Weights.of({"w": f32(6.9 + index / 100, -1)}) for index in range(K)])

    async def program(matrix):
        out = Weights.zeros(matrix.start.layout)
        await matrix.combine([1 / K] * K, out)
        return out["w"].tolist()

    assert spread(7, program) == run_here(program(local())) == pytest.approx([6.93, -1])


def test_a_row_comes_exactly_as_it_is(ranks):
    async def program(matrix):
        out = Weights.zeros(layout())
        await matrix.row(4, out)
        return bits(out)

    assert spread(ranks, program) == bits(ROWS[4])


def test_clients_that_trained_on_nothing_have_no_row():
    async def program(matrix):
        out = Weights.zeros(layout())
        await matrix.columnwise(Kernel("median"), out)
        return list(matrix.client_ids), matrix.num_samples, (await matrix.gram()).products.shape, bits(out)

    names, counts, shape, _ = spread(2, program, counts=[0, *COUNTS[1:]])
    assert (names, counts, shape) == (NAMES[1:], COUNTS[1:], (K - 1, K - 1))


@pytest.mark.parametrize("most", [16 << 10, 4 << 20])
def test_no_rank_ever_gets_all_rows(monkeypatch, most):
    """What rank 0 receives: its slice of the columns, once, and the results; not K times P, and no more than a block at a time."""
    monkeypatch.setattr("federation.node.matrix.BLOCK_BYTES", most)
    received = []

    def counting(transport):
        if transport.rank == 0:
            alltoall, gather = transport.alltoall, transport.gather

            async def counted_alltoall(buffers, out):
                received.append(sum(part.nbytes for part in out))
                await alltoall(buffers, out)

            async def counted_gather(buffer, out=None, root=0):
                received.append(sum(part.nbytes for part in out))
                await gather(buffer, out, root)

            transport.alltoall, transport.gather = counted_alltoall, counted_gather
        return transport

    async def program(matrix):
        await matrix.columnwise(Kernel("median"), Weights.zeros(layout()))

    spread(3, program, transport_of=counting)
    nbytes = layout().nbytes
    assert max(received) <= min(most, K * nbytes / 4) + K * 64 * 8
    assert sum(received) <= K * nbytes / 4 * 1.2 + nbytes + K * 64 * 16


def alone(**more):
    """The matrix of one client on the server's own rank in round 4, whose server is nothing but what the matrix uses of it."""
    host = SimpleNamespace(updates=SimpleNamespace(row=lambda client_id: (ROWS[0], {})), layout=layout(), weights=START)
    node = Node(memory.world(1)[0], [])
    server = SimpleNamespace(host=host, node=node, orders=Orders(node, 0.01), weights=START, ranks=[0], **more)
    outcome = Outcome(NAMES[0], 3, 0.5, 3.0, False)
    return DistributedMatrix(server, SimpleNamespace(outcomes=[outcome], ranks={NAMES[0]: 0}, plan=Plan(4, [])))


@pytest.mark.parametrize(("verb", "what"), [
    (lambda matrix: matrix.columnwise(Kernel("median"), Weights.zeros(layout())), "the columns of the updates"),
    (lambda matrix: matrix.gram(), "the inner products of the updates")], ids=["columnwise", "gram"])
def test_ranks_that_do_not_take_part_are_waited_for_so_long(verb, what):
    async def main():
        with pytest.raises(RoundError, match=rf"^round 4: {what} took longer than round_timeout=0\.01 s$"):
            await asyncio.wait_for(verb(alone(tell=lambda order: asyncio.Event().wait())), 20)

    asyncio.run(main())


def test_the_reduction_of_a_combination_has_its_round_and_as_many_words_as_any_rank_needs():
    asked = []

    async def reduced(collect):
        asked.append(collect)
        return SimpleNamespace(mean_into=lambda out: None)

    async def main():
        matrix = alone(reduced=reduced)
        matrix._server.host.updates.combine = lambda order: Combined(limbs=3)
        await matrix.combine([0.5], Weights.zeros(layout()))

    asyncio.run(main())
    assert asked == [Collect(round=4, limbs=3)]


@pytest.mark.parametrize("verb", ["alltoall", "gather", "reduce"])
def test_the_end_of_the_world_ends_a_collective(monkeypatch, verb):
    """A rank that has died comes to none, and over MPI nothing else would tell the others."""
    async def main():
        matrix, begun = alone(), asyncio.Event()
        node, host = matrix._server.node, matrix._server.host

        async def endless(*args, **kwargs):
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(node.transport, verb, endless)
        clients = {"clients": matrix.client_ids, "ranks": [0]}
        taking_part = asyncio.create_task(take_part_in_gram(node, host, Gram(**clients)) if verb == "reduce" else
                                          take_part_in_columnwise(node, host, Columnwise(kernel=Kernel("median"), **clients)))
        await begun.wait()
        node.fail(Disconnected("rank 1 is lost"))
        _, unfinished = await asyncio.wait([taking_part], timeout=10)
        assert not unfinished
        with pytest.raises(Disconnected, match="rank 1 is lost"):
            await taking_part

    asyncio.run(main())

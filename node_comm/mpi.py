"""A world of MPI ranks: native collectives and nonblocking messages behind the transport contract.

    node_comm.mpi.run(main)              # on every rank: await main(transport); a rank that fails ends the job

Importing this module loads no MPI; `connect` does, which initialises it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TypeVar, TypeVarTuple

import msgspec
import numpy as np

from node_comm import launchers
from node_comm.agreement import alltoall_call, barrier_call, broadcast_call, gather_call, reduce_call
from node_comm.arrays import Into, as_bytes, describe, destination, packed
from node_comm.bells import Bells, Location
from node_comm.errors import AddressError, CommError, Disconnected, Unavailable
from node_comm.mpi_thread import OperationThread
from node_comm.output import flush_output
from node_comm.transport import Operation, Received, Transport

if TYPE_CHECKING:
    from mpi4py import MPI

    from node_comm import mpi_recovery, mpi_thread
    from node_comm.mpi_nodes import Nodes
    from node_comm.mpi_shared import SharedMemory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

#: One MPI call moves at most so many bytes, well below the 2^31 - 1 that MPI's counts can hold.
MAX_CHUNK_BYTES = 1 << 30
#: For messages, for collectives and for the end: of their own, so that none takes what belongs to another.
COMMUNICATORS = 3
#: Ranks of one machine read each other's arrays where they lie, after a message; a collective takes several turns between them.
DIRECT_BYTES = 1 << 22
#: A rank that leaves with a status waits so long (seconds) for the others to leave too, before it ends the job.
LEAVE_SECONDS = 2.0
#: Every MPI library sends so short a message without hearing from its receiver first: it needs no more calls to arrive.
EAGER_BYTES = 1 << 10
#: What is still to be sent when the transport is closed gets so long (seconds): a rank that is gone takes nothing.
SEND_SECONDS = 1.0
#: A rank that ends the job waits so long (seconds) for its own thread, and under ULFM for the others to hear of it.
END_SECONDS = 5.0

_NOTHING = np.empty(0, np.uint8)


def connect(max_chunk_bytes: int = MAX_CHUNK_BYTES, *, share_memory: bool = True) -> MPITransport:
    """Join the world of all MPI ranks; to be called by every rank.

    With `share_memory` (the same on all ranks), the ranks of a machine reduce large arrays in shared memory, where they can
    open each other's; of several machines, one rank of each then reduces what comes of it by MPI. No MPI call moves more
    than `max_chunk_bytes` bytes (1 to 2^31 - 1; the smallest value of all ranks counts).
    For tests and measurements, NODE_COMM_PRETENDED_NODES in the environment takes the ranks of one machine apart into
    several (see `launchers.pretended_nodes`).
    Raises Unavailable when mpi4py or the MPI library is missing or broken, or forbids calls from a second thread, and where
    NODE_COMM_PRETENDED_NODES does not fit the world.
    """
    if not 1 <= max_chunk_bytes < 2**31:
        raise ValueError(f"max_chunk_bytes must be 1 to {2**31 - 1}, not {max_chunk_bytes}")
    mpi = _load_mpi()
    if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
        raise Unavailable("MPI was initialised without thread support, and this transport makes its MPI calls from a "
                          "thread of its own: leave mpi4py.rc.thread_level at 'multiple' (or use 'serialized') and use "
                          f"an MPI library built with thread support; this one is {_library(mpi)}")
    pretended = launchers.pretended_nodes(os.environ, mpi.COMM_WORLD.Get_size())
    smallest = np.array([max_chunk_bytes], np.int64)
    mpi.COMM_WORLD.Allreduce(mpi.IN_PLACE, smallest, mpi.MIN)
    world = mpi.COMM_WORLD.Dup()  # its error handler is this transport's affair
    world.Set_errhandler(mpi.ERRORS_RETURN)
    comms = [world.Dup() for _ in range(COMMUNICATORS)]
    from node_comm.mpi_nodes import Nodes

    shared = Nodes.probe(comms[1], int(smallest[0]), pretended) if share_memory else None
    return MPITransport(world, comms, int(smallest[0]), _bells(world, rings=pretended is None), shared)


def run(main: Callable[[MPITransport, *Arguments], Awaitable[Result]], *args: *Arguments) -> Result:
    """Run `main(transport, *args)` in an event loop on this rank, and return what it returns.

    What `main` raises ends the whole job with status 1 after the traceback, with the rank, has been printed: the
    other ranks would wait for this one for ever. SystemExit with a status ends the job quietly: this process alone
    if every rank leaves so, else all of them. So user code that may fail, imports included, belongs inside `main`.
    """
    return asyncio.run(_guarded(connect(), main, args))


async def _guarded(transport: MPITransport, main: Callable[[MPITransport, *Arguments], Awaitable[Result]],
                   args: tuple[*Arguments]) -> Result:
    # Aborts in here, not around asyncio.run, which first waits for every thread that still computes.
    try:
        result = await main(transport, *args)
    except SystemExit as leaving:
        status = _exit_status(leaving)
        if status and not await transport.all_leave(LEAVE_SECONDS):
            if not isinstance(leaving.code, int):  # a text, which Python would print only at the process's own end
                print(leaving.code, file=sys.stderr)
            transport.abort(status)
        await transport.close()
        raise
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        sys.stderr.write(f"rank {transport.rank} of {transport.size} on {transport.processor} failed, "
                         f"which ends the job:\n{trace}")
        transport.abort(1)
    await transport.close()
    return result


def _exit_status(leaving: SystemExit) -> int:
    if leaving.code is None or isinstance(leaving.code, int):
        return leaving.code or 0
    return 1  # a text


def _load_mpi() -> ModuleType:
    if launchers.launched_size(os.environ) is None:
        # A process that no launcher started has nobody to share memory with, and Open MPI would leave a file of it behind.
        os.environ.setdefault("OMPI_MCA_btl", "self")
    try:
        if launchers.survives_lost_ranks(os.environ):
            import mpi4py

            mpi4py.rc.finalize = False  # after the loss of a rank it may wait for ever (seen in a third of runs)
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "mpi4py":
            raise Unavailable("MPI cannot be used here: mpi4py is not installed. Install the `mpi` extra (mpi4py and "
                              "an MPI library).") from error
        raise Unavailable(f"MPI cannot be used here: mpi4py does not load ({error}). Load your site's MPI module, or "
                          "install the `mpi` extra (mpi4py and an MPI library).") from error
    return MPI


def _bells(world: MPI.Intracomm, rings: bool) -> Bells:
    """This rank's bell, and those of the ranks that it can ring (on its machine, where it `rings`); all of `world` are here."""
    from mpi4py import MPI

    from node_comm.mpi_shared import gathered

    bells = Bells()
    if rings:
        locations = gathered(world, msgspec.msgpack.encode(bells.location()))
        reached = np.array([bells.reach([msgspec.msgpack.decode(each, type=Location | None) for each in locations])], np.int64)
        world.Allreduce(MPI.IN_PLACE, reached, MPI.MIN)
        bells.is_rung_by_all = bool(reached[0])
    return bells


def _library(mpi: ModuleType) -> str:
    text: str = mpi.Get_library_version()
    return text.rstrip("\0 \n")


class MPITransport(Transport):
    """One MPI rank. `connect` makes it; the communicators it uses are its own.

    Where the MPI library and its launcher survive lost ranks (ULFM: ``mpirun --with-ft ulfm``), it is `recoverable`:
    every rank learns at once of the loss of any. MPI is not finalized there.

    `into` functions are called in the event loop's thread. A cancelled call ends the transport (see the contract).

    Public attributes beside `rank` and `size`: `library_version` (the MPI library's text), `thread_level`
    ("serialized" or "multiple"), `processor` (this host's name according to MPI), `offers_ulfm` (whether the library
    has the calls that survive a lost rank; they work only under a launcher that was told so, see
    `launchers.survives_lost_ranks`), `max_chunk_bytes`.
    """

    def __init__(self, world: MPI.Intracomm, comms: Sequence[MPI.Intracomm], max_chunk_bytes: int, bells: Bells,
                 shared: SharedMemory | Nodes | None = None) -> None:
        from mpi4py import MPI

        from node_comm.mpi_collectives import Collectives
        from node_comm.mpi_end import End
        from node_comm.mpi_messages import Messages
        from node_comm.mpi_shared import SharedMemory

        self.rank = world.Get_rank()
        self.size = world.Get_size()
        self.max_chunk_bytes = max_chunk_bytes
        self.library_version = _library(MPI)
        self.processor = MPI.Get_processor_name()
        self.thread_level = {MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}[MPI.Query_thread()]
        self.offers_ulfm = _offers_ulfm(world)
        self.recoverable = (self.offers_ulfm and self.thread_level == "multiple"
                            and launchers.survives_lost_ranks(os.environ))
        self._world = world
        self._origins = list(range(self.size))  # the launcher's numbers of these ranks
        messages, collectives, exits = self._comms = comms
        for comm in comms:
            comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._agreed: mpi_recovery.Word | None = None  # what all ranks of this world have agreed on, at its end
        self._messages = Messages(messages, max_chunk_bytes)
        self._shared = shared
        self._machine = shared if isinstance(shared, SharedMemory) else None  # where it is the memory of all ranks
        if self._machine is not None:
            self.direct_bytes = DIRECT_BYTES
        #: Whoever waits in a call on one of these has to be woken when a rank is lost.
        self._revocable = [messages, collectives, *(shared.comms if shared is not None else ())]
        self._collectives = Collectives(collectives, max_chunk_bytes, shared)
        self._exits = Collectives(exits, max_chunk_bytes)
        self._sending: set[asyncio.Future[None]] = set()  # messages that nobody waits for
        self._turn = asyncio.Lock()
        self._tags = itertools.cycle(range(1, 32768))
        self._bells = bells
        self._end = None if self.recoverable or self.size == 1 else End(exits)
        listen = None if self._end is None else self._end.listen
        self._thread = OperationThread("node_comm MPI", self._as_comm_error, bells, listen)

    async def send(self, dest: int, header: bytes, buffer: np.ndarray | None = None) -> None:
        """See Transport. Without a buffer it returns at once, and what goes wrong later ends the transport."""
        from node_comm.mpi_messages import Frame

        self._check_rank(dest)
        if len(header) > self.max_chunk_bytes:
            raise CommError(f"a header of {len(header)} bytes is longer than max_chunk_bytes, {self.max_chunk_bytes}; "
                            "send large data as the buffer")
        description = None if buffer is None else describe(buffer)
        payload = _NOTHING if buffer is None else as_bytes(packed(buffer))
        frame = Frame(bytes(header), description, payload.size, next(self._tags))
        if dest == self.rank:  # received by whoever comes later, maybe by the same task: the buffer cannot be lent
            await self._run(self._messages.send_here(frame, payload.copy()))
        elif buffer is None:
            sending = self._thread.begin(self._messages.send(dest, frame, payload), [dest],
                                         awaits_ring=len(header) <= EAGER_BYTES)
            self._sending.add(sending)
            sending.add_done_callback(self._sent)
        else:
            await self._run(self._messages.send(dest, frame, payload), [dest])

    async def recv(self, source: int | None = None, into: Into = None) -> Received:
        if source is not None:
            self._check_rank(source)
        arrival = await self._run(self._messages.receive_frame(source), awaits_ring=True)
        header, description = arrival.frame.header, arrival.frame.description
        if description is None:
            return Received(arrival.source, header, None)
        try:
            target = destination(into, header, description)
        except Exception:
            await self._run(self._messages.discard_payload(arrival), [arrival.source])
            raise
        await self._run(self._messages.receive_payload(arrival, as_bytes(target)), [arrival.source])
        return Received(arrival.source, header, target)

    async def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        call = broadcast_call(self.rank, self.size, buffer, root)
        flat = _NOTHING if call.problem else as_bytes(packed(buffer))
        await self._collective(self._collectives.broadcast(call, flat))

    async def reduce(self, buffer: np.ndarray | None, out: np.ndarray | None = None, root: int = 0,
                     operation: Operation = "sum") -> None:
        call = reduce_call(self.rank, self.size, buffer, out, root, operation)
        target = out.reshape(-1) if out is not None and self.rank == root and not call.problem else None
        flat = None if buffer is None else packed(buffer).reshape(-1)
        await self._collective(self._collectives.reduce(call, flat, target))

    async def gather(self, buffer: np.ndarray, out: Sequence[np.ndarray] | None = None, root: int = 0) -> None:
        call = gather_call(self.rank, self.size, buffer, out, root)
        flat = _NOTHING if call.problem else as_bytes(packed(buffer))
        targets = [as_bytes(target) for target in out] if out is not None and self.rank == root and not call.problem else []
        await self._collective(self._collectives.gather(call, flat, targets))

    async def alltoall(self, buffers: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        call = alltoall_call(self.size, buffers, out)
        sources = [] if call.problem else [as_bytes(packed(buffer)) for buffer in buffers]
        targets = [] if call.problem else [as_bytes(target) for target in out]
        await self._collective(self._collectives.alltoall(call, sources, targets))

    async def barrier(self) -> None:
        await self._collective(self._collectives.arrive(barrier_call()))

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """See Transport. Where a machine has several ranks, memory that the others reduce where it lies."""
        array = None if self._shared is None else self._shared.allocate(shape, dtype)
        return super().allocate(shape, dtype) if array is None else array

    def place_of(self, array: np.ndarray) -> bytes | None:
        """See Transport. Where all ranks are on one machine, and can read each other's memory."""
        return None if self._machine is None else self._machine.place_of(array)

    def read_at(self, place: bytes) -> np.ndarray:
        """See Transport."""
        return super().read_at(place) if self._machine is None else self._machine.read_at(place)

    async def close(self) -> None:
        """See Transport. Needs no other rank; MPI itself is finalized when the process ends."""
        if await self._stop() and not self.recoverable:  # the world that comes after this one has the same bells
            self._bells.close()

    async def _stop(self) -> bool:
        """End the thread, once messages are on their way, and close what only it uses; False if it does not end."""
        if self._sending:
            _, left = await asyncio.wait(self._sending, timeout=SEND_SECONDS)
            if left:
                logger.warning("rank %d closes with %d messages that nobody has taken in %g s", self.rank, len(left), SEND_SECONDS)
        if not await self._thread.stop(Disconnected("this MPI transport has been closed")):
            logger.warning("rank %d still waits inside an MPI call: another rank has left in mid-collective", self.rank)
            return False
        if self._shared is not None:
            shared, self._shared = self._shared, None
            shared.close()
        return True

    async def finish(self) -> None:
        """See Transport: nobody leaves a recoverable world before all agree that none is lost."""
        if not self.recoverable:
            await self.close()
            return
        from node_comm.mpi_recovery import Word

        has_stopped = await self._stop()
        if await self._agree(Word.LEAVE) is not Word.LEAVE:
            raise Disconnected("a rank was lost while all were leaving")
        if has_stopped:
            self._bells.close()

    async def recover(self) -> Transport:
        """See Transport: a world of the ranks that live, by ULFM's Shrink."""
        from node_comm import mpi_recovery

        if not self.recoverable:
            return await super().recover()
        mpi_recovery.revoke(self._revocable)  # so that nobody waits for this rank, nor this rank in a call of its own
        has_stopped = await self._stop()
        if await self._agree(mpi_recovery.Word.GO_ON) is mpi_recovery.Word.END:
            raise Disconnected("another rank has ended the job")
        world, comms = await asyncio.to_thread(mpi_recovery.shrunk, self._world, COMMUNICATORS)
        lost = mpi_recovery.lost(self._world, world)
        if 0 in lost:
            raise Disconnected("rank 0 is lost, which the others cannot do without")
        left = [rank for rank in range(self.size) if rank not in lost]
        bells = self._bells.of_survivors(left) if has_stopped else Bells()
        successor = MPITransport(world, comms, self.max_chunk_bytes, bells)
        successor.lost = tuple(self._origins[rank] for rank in lost)
        successor._origins = [self._origins[rank] for rank in left]
        return successor

    async def _agree(self, word: mpi_recovery.Word) -> mpi_recovery.Word:
        """Each rank says its last word in this world, once, and waits for those of all others."""
        from node_comm import mpi_recovery

        if self._agreed is None:
            self._agreed = await asyncio.to_thread(mpi_recovery.agree, self._comms[2], word)
        return self._agreed

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job, all ranks, with exit status `status` (1 to 125; anything else counts as 1).

        At once, but for the moment in which the others are told; some seconds where one does not hear.
        """
        flush_output()
        status = status if 1 <= status <= 125 else 1
        if self.recoverable and (self._agreed is not None or self._end_together()):
            os._exit(status)
        if self._end is not None and self._thread.stop_now(Disconnected("this rank ends the job"), END_SECONDS):
            self._end.tell(status)
        self._world.Abort(status)
        raise SystemExit(status)  # Abort does not return

    def _end_together(self) -> bool:
        """Have all ranks end by themselves: under ULFM, Open MPI forgets the status of an Abort by the last ones that live.

        False where some are not heard of in time.
        """
        from node_comm import mpi_recovery

        mpi_recovery.revoke(self._revocable)
        asking = threading.Thread(target=mpi_recovery.agree, args=(self._comms[2], mpi_recovery.Word.END), daemon=True)
        asking.start()
        asking.join(END_SECONDS)
        return not asking.is_alive()

    async def all_leave(self, seconds: float) -> bool:
        """Whether all ranks call this within `seconds` of each other. Call it at most once."""
        try:
            async with asyncio.timeout(seconds):
                await self._thread.run(self._exits.arrive(barrier_call()), None)
        except (TimeoutError, Disconnected):
            return False
        return True

    def _as_comm_error(self, error: Exception) -> Exception:
        """On the MPI thread. Open MPI's nonblocking collectives call the loss of a rank by no name of its own."""
        from node_comm import mpi_recovery
        from node_comm.mpi_messages import as_comm_error

        translated = as_comm_error(error)
        comms = [*self._comms, *self._revocable]
        if self.recoverable and type(translated) is CommError and any(map(mpi_recovery.is_broken, comms)):
            return Disconnected(*translated.args)
        return translated

    async def _run(self, operation: mpi_thread.Operation[Result], partners: Sequence[int] | None = (), *,
                   awaits_ring: bool = False) -> Result:
        try:
            return await self._thread.run(operation, partners, awaits_ring=awaits_ring)
        except Disconnected as error:
            self._thread.end(error)
            raise
        except asyncio.CancelledError:
            self._thread.end(Disconnected("a call on this MPI transport was cancelled, so it cannot be used any more"))
            raise

    def _sent(self, sending: asyncio.Future[None]) -> None:
        self._sending.discard(sending)
        error = None if sending.cancelled() else sending.exception()
        if error is not None:
            self._thread.end(error if isinstance(error, Disconnected) else Disconnected(f"a message could not be sent: {error}"))

    async def _collective(self, operation: mpi_thread.Operation[None]) -> None:
        async with self._turn:  # ranks must enter collectives in one order: that of the calls
            await self._run(operation, None)

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise AddressError(f"there is no rank {rank} in this world of {self.size} (0 to {self.size - 1})")


def _offers_ulfm(world: MPI.Intracomm) -> bool:
    try:
        world.Is_revoked()
    except NotImplementedError:
        return False
    return True

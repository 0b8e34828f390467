"""Who may join the cluster. Pure: the request and what is known, to a record or a refusal with its reason."""

from __future__ import annotations

from dataclasses import replace

import grpc

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import cluster_pb2
from ryzanstein.wire import StatusError, invalid_argument

from .state import ClusterState
from .worker_record import DeviceRecord, WorkerRecord

_DEVICE_KINDS = ("cpu", "cuda")
_MAX_NAME = 128
#: Of what is only shown: host names, device models, releases.
_MAX_TEXT = 256
#: Every whole number up to here is exact in JSON and fits into the store. No cluster comes near it.
MAX_EPOCH = 2**53
#: How many earlier processes of one id are remembered, so that a second live one with its id is found out.
_REPLACED_LIMIT = 8


def examine(
    now_s: float,
    state: ClusterState,
    request: cluster_pb2.RegisterRequest,
    *,
    equal_bits: bool = True,
    before: str = "",
) -> WorkerRecord:
    """The record of the worker as it begins anew or comes back.

    Args:
        equal_bits: whichever workers hold the ranks, a request has to give the same tokens.
        before: how the ranks computed before this coordinator started, while they are waited for; empty: not known,
            or waited for no longer.

    Raises:
        StatusError: INVALID_ARGUMENT for a request that makes no sense; FAILED_PRECONDITION for a worker that
            can never serve here: other versions, an id that another process has taken over, or a CPU that does
            not compute as the others do; UNAVAILABLE if it does not compute as the ranks did `before`.
    """
    _check_fields(request)
    _check_versions(request)
    known = state.workers.get(request.worker_id)
    if known is not None and request.incarnation in known.replaced:
        raise _refused(
            f"worker id {request.worker_id!r} was taken over by the process {known.pid} on {known.host}; "
            "give every worker its own --worker-id"
        )
    device = request.device
    record = WorkerRecord(
        worker_id=request.worker_id,
        incarnation=request.incarnation,
        registered_at_s=now_s,
        host=request.host,
        host_id=request.host_id or request.host,
        pid=request.pid,
        address=request.address,
        tls=request.tls,
        device=DeviceRecord(
            name=device.name,
            kind=device.kind,
            model=device.model,
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            baseline_bytes=device.baseline_bytes,
            instructions=device.instructions,
            tiles=device.tiles,
            uuid=device.uuid,
        ),
        release=request.versions.release,
        cpu_threads=request.cpu_threads,
        seen_epoch=request.highest_epoch,
    )
    if equal_bits:
        _check_computing(state, record, before)
    if known is None:
        return record
    if known.incarnation != request.incarnation:
        return replace(record, replaced=(*known.replaced, known.incarnation)[-_REPLACED_LIMIT:])
    # The same process lost its stream: what it holds and where it belongs is still true.
    return replace(
        known,
        registered_at_s=now_s,
        address=record.address,
        tls=record.tls,
        seen_epoch=max(known.seen_epoch, record.seen_epoch),
        stream=0 if known.lost_reason else known.stream,
        heard=known.heard and not known.lost_reason,
        lost_reason="",
        suspect=False,
    )


def _check_fields(request: cluster_pb2.RegisterRequest) -> None:
    for name in ("worker_id", "incarnation"):
        text = getattr(request, name)
        if not 1 <= len(text) <= _MAX_NAME or not text.isprintable() or not text.isascii():
            raise invalid_argument(f"Register: {name} must be 1 to {_MAX_NAME} printable ASCII characters")
    host, _, port = request.address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6) or not 0 < int(port) < 65536:
        raise invalid_argument(
            f"Register: address {request.address!r} of {request.worker_id} is not HOST:PORT of its own server"
        )
    texts: tuple[str, ...] = (request.address, request.host, request.host_id, request.versions.release)
    device = request.device
    texts += (device.name, device.model, device.instructions, device.uuid)
    if any(len(text) > _MAX_TEXT for text in texts):
        raise invalid_argument(
            f"Register: a text of {request.worker_id} is longer than {_MAX_TEXT} characters"
        )
    check_epoch(request.highest_epoch, request.worker_id)
    if request.device.kind not in _DEVICE_KINDS:
        raise invalid_argument(
            f"Register: device kind {request.device.kind!r} of {request.worker_id} is not one of "
            f"{', '.join(_DEVICE_KINDS)}"
        )
    if request.device.total_bytes == 0:
        raise invalid_argument(f"Register: device {request.device.name} of {request.worker_id} has no memory")


def check_epoch(epoch: int, worker_id: str) -> None:
    """Raises StatusError, INVALID_ARGUMENT, for a number that no coordinator ever gave: nothing can follow it."""
    if epoch > MAX_EPOCH:
        raise invalid_argument(f"{worker_id} speaks of epoch {epoch}; no epoch is above {MAX_EPOCH}")


def _check_versions(request: cluster_pb2.RegisterRequest) -> None:
    for name, theirs, ours in (
        ("wire", request.versions.wire, WIRE_VERSION),
        ("numerics", request.versions.numerics, NUMERICS_VERSION),
    ):
        if theirs != ours:
            raise _refused(
                f"{request.worker_id} (release {request.versions.release or 'unknown'}) has {name} version "
                f"{theirs}, this coordinator has {ours}: install releases whose {name} versions agree"
            )


def _check_computing(state: ClusterState, record: WorkerRecord, before: str) -> None:
    """Ranks of one CPU may still compute differently: Linux may refuse AMX to a process, a library may be missing, and
    some sums depend on the number of threads.
    """
    theirs = record.computing
    if not theirs:
        return
    for other in state.workers.values():
        if other.alive and other.worker_id != record.worker_id and other.computing not in ("", theirs):
            raise _refused(
                f"{record.worker_id} on {record.host} computes with {theirs}, but {other.worker_id} on {other.host} "
                f"with {other.computing}: the same request would give other tokens when a rank moves; give all "
                "workers the same processors, packages, sandbox and --cpu-threads, or start the coordinator with "
                "--no-reproducible"
            )
    if before not in ("", theirs):
        raise StatusError(
            grpc.StatusCode.UNAVAILABLE,
            f"{record.worker_id} on {record.host} computes with {theirs}, but the ranks with {before} until the "
            "coordinator was restarted: they are waited for first",
        )


def _refused(message: str) -> StatusError:
    """Trying again can't help: the worker's process ends with this message."""
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)

"""Where a run's jobs are carried out: on this machine, or on a Ray cluster, to which this module connects."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fitwithin import machine
from fitwithin.engine.base import Engine
from fitwithin.engine.launch import Server
from fitwithin.engine.local import Local
from fitwithin.errors import DeviceError, UsageError
from fitwithin.machine import DeviceName
from fitwithin.request import Request

#: A cluster's head that does not answer within so many seconds counts as absent. (Ray itself tries for minutes.)
HEAD_WITHIN_S = 5.0

#: The object store of a cluster that we start: the least that Ray takes. No object of ours exceeds a few KiB.
STORE_BYTES = 80 * 2**20


class Site:
    """The machine or cluster of a run, from before its device is known until its engine has ended.

    Args:
        engine: ``local`` or ``ray``.
        ray_address: ``HOST:PORT`` of a cluster's head, or ``auto``: the cluster of this node. None: $RAY_ADDRESS, else
            a cluster of this machine alone, which begins and ends with the site.
        server: the local worker server that was launched; a site on a cluster does not need it and ends it.

    Raises:
        UsageError: ray is not installed.
        DeviceError: the cluster cannot be reached.
    """

    def __init__(self, engine: str, ray_address: str | None, server: Server) -> None:
        self.engine, self._server, self._ours = engine, server, False
        if engine == "ray":
            server.close()
            self._ours = _connect(ray_address)

    def device(self, text: str | DeviceName, data_parallel: int = 1, gpus: int | None = None) -> DeviceName:
        """The device that ``auto``, ``cpu`` or ``cuda`` means here, the first of ``gpus`` in a row.

        Raises:
            UsageError: there is no such device, or there are too few, or they are not of one kind.
        """
        if self.engine != "ray":
            if gpus is None or gpus <= data_parallel:
                return machine.resolve_device(text, data_parallel)
            return machine.resolve_device(text, gpus, "--gpus", same_kind=True)
        if isinstance(text, str) and text.strip().lower() == "auto":
            text = "cuda" if _resources("GPU")[0] else "cpu"
        device = DeviceName.parse(text)
        if device.index:
            raise UsageError(f"{text!r} is not a device of a Ray cluster, where Ray chooses the GPU; give cuda")
        _check(device)
        return device

    @contextmanager
    def open(self, request: Request, folder: Path | None) -> Iterator[Engine]:
        """The engine that carries the request out; the run's folder, if there is one, gets the workers' output."""
        log, emulated, gpus = self._server.log, request.emulate_bytes, request.num_gpus
        engine: Engine
        if self.engine == "ray":
            engine = _cluster(request.device, request.gpus, log)
        else:
            engine = Local(request.device, emulate_bytes=emulated, server=self._server, gpus=gpus)
        try:
            yield engine
        finally:
            engine.close()
            if folder is not None and (folder / "run.db").is_file() and log and log.is_file() and log.stat().st_size:
                with (folder / "worker.log").open("ab") as kept:
                    kept.write(log.read_bytes())

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            import ray

            ray.shutdown()


def _connect(address: str | None) -> bool:
    """Connect to the cluster; false if this process is connected already."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a cluster that we start reports nothing to Ray's makers
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray; install it with: pip install 'fitwithin[ray]'") from error
    if ray.is_initialized():
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where.startswith("ray://"):
        raise UsageError(
            f"{where} is an address for Ray Client, which shares neither a clock nor files with the cluster; run "
            f"fitwithin on a node of the cluster with --ray-address auto"
        )
    options: dict[str, Any] = {}
    if where == "local":
        options = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        _reach(where)
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, TimeoutError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"there is no Ray cluster at {where} ({reason}); start one with "
            f"`ray start --head`, its other nodes with `ray start --address HOST:PORT`, and run fitwithin on one"
        ) from error
    # Ray must not print to standard output when a worker dies: the run reports that itself (and --json).
    with suppress(ImportError, AttributeError):
        from ray._private import worker

        worker._worker_logs_enabled = False
    return True


def _reach(where: str) -> None:
    """OSError unless something listens at that address; ray.init would try for more than two minutes."""
    if where == "auto":
        with suppress(ImportError, AttributeError):  # a function that Ray does not promise
            from ray._private.services import canonicalize_bootstrap_address_or_die

            where = str(canonicalize_bootstrap_address_or_die("auto"))
    host, _, port = where.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=HEAD_WITHIN_S).close()


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _resources(kind: str) -> tuple[int, int]:
    """The cluster's number of ``GPU`` or ``CPU``, and the most on one node."""
    counts = [int(node.get(kind, 0)) for node in _nodes()]
    return sum(counts), max(counts, default=0)


def _check(device: DeviceName) -> None:
    kind, other = ("GPU", "cpu") if device.is_cuda else ("CPU", "cuda")
    if not _resources(kind)[0]:
        raise UsageError(
            f"--device {device.kind} was given, but the Ray cluster of {len(_nodes())} nodes has no {kind}; "
            f"start a node with `ray start --num-{kind.lower()}s N`, or give --device {other}"
        )


def _cluster(device: DeviceName, wanted: int, log: Path | None) -> Engine:
    """The cluster as an engine, on GPUs of the kind of which it has most: a profile is of one kind.

    Raises:
        UsageError: it has fewer than are ``wanted`` at once.
    """
    from fitwithin.engine.ray_engine import Cluster

    _check(device)
    kind, word = None, "GPU" if device.is_cuda else "CPU"
    slots, most = _resources(word)
    if device.is_cuda:
        kinds: Counter[str] = Counter()
        for node in _nodes():
            name = next((name.partition(":")[2] for name in node if name.startswith("accelerator_type:")), "")
            kinds[name] += int(node.get("GPU", 0))
        (kind, slots), *_ = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
        kind = kind if len(+kinds) > 1 and kind else None
    if wanted > slots:
        seen = f"{slots} {word}{'s' if slots != 1 else ''}" + (f" of the kind {kind}" if kind else "")
        raise UsageError(
            f"--gpus {wanted} was given, but the Ray cluster has {seen}; give --gpus {slots}, or add nodes"
        )
    return Cluster(device, gpus=kind, slots=slots, jobs_per_host=max(1, most), log=log)

"""The Python workers of a Flink cluster: ``python -m streamgauge.pipelines.services.worker_pool --port N``.

TaskManagers ask this pool for workers (Beam's environment type EXTERNAL). Beam's own pool starts ``python`` from the PATH and lets
a frozen worker live; this one runs workers on this interpreter, forked from a process that has imported everything while the
cluster came up (a worker is there in a tenth of a second instead of three), and ends them by SIGKILL: a worker that was frozen
and replaced must not wake up again.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

HOST = "127.0.0.1"
STATE_CACHE_MB = 0
"""Memory of a worker for what it read from state. None: what we keep in state is read once; and Beam's cache weighs each
entry by walking all loaded modules (0.4 ms)."""

_PRELOADED = ["streamgauge.pipelines.services.worker_modules"]
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Starts and ends workers as TaskManagers ask."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
        self._workers: dict[tuple[str, str], BaseProcess] = {}
        self._lock = threading.Lock()

    def StartWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        try:
            worker = self._context.Process(target=run_worker, args=(request.control_endpoint.url, request.worker_id), daemon=True)
            worker.start()
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        log.warning("worker %s for %s: process %d", request.worker_id, request.control_endpoint.url, worker.pid)
        with self._lock:
            self._workers = {key: other for key, other in self._workers.items() if other.is_alive()}
            self._workers[context.peer(), request.worker_id] = worker
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """Ends the worker of this name that was started over the same connection: every TaskManager counts its workers from 1.
        After a new connection the name must do; where it is not enough, the worker sees that its TaskManager has hung up."""
        with self._lock:
            named = [key for key in self._workers if key[1] == request.worker_id]
            own = [key for key in named if key[0] == context.peer()] or named
            worker = self._workers.pop(own[0]) if len(own) == 1 else None
        if worker is not None:
            worker.kill()
            worker.join()
        return beam_fn_api_pb2.StopWorkerResponse()


def run_worker(control_endpoint: str, worker_id: str) -> None:
    """One worker, until its TaskManager hangs up; it outlives the pool, but not the process that it was forked from."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s %(levelname)s {worker_id} ({os.getpid()}) %(name)s %(message)s", force=True)
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    from streamgauge.pipelines.services.quick_bundles import quick_bundles

    quick_bundles()
    SdkHarness(control_endpoint, worker_id=worker_id, state_cache_size=STATE_CACHE_MB * 2**20).run()


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts Python workers for the TaskManagers of a Flink cluster.")
    parser.add_argument("--port", type=int, required=True, help="where TaskManagers ask for workers, on 127.0.0.1")
    port = parser.parse_args().port
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s pool %(message)s")
    logging.captureWarnings(True)
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)])
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()

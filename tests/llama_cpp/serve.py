"""llama.cpp's own server, in its own environment (xllamacpp): `python serve.py MODEL PORT`."""

from __future__ import annotations

import sys
import threading

import xllamacpp


def main(model: str, port: int) -> None:
    """Serves until it is killed."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel = 8192, 2
    params.cpuparams.n_threads = 1
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Calls a model of Triton by its own clients, in an environment that has them; prints JSON.

python client.py HOST HTTP_PORT GRPC_PORT MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def infer(client: Any, package: Any, model: str, ids: list[int], *, rank: int = 2) -> Any:
    """The embeddings of some ids, or the error."""
    array = np.array(ids, np.int64).reshape((len(ids), *[1] * (rank - 1)))
    given = package.InferInput("ids", array.shape, "INT64")
    given.set_data_from_numpy(array)
    try:
        return client.infer(model, [given]).as_numpy("y").tolist()
    except package.InferenceServerException as error:
        return str(error)


def main(host: str, http: str, grpc: str, model: str) -> None:
    """Print the answers of both protocols."""
    import tritonclient.grpc
    import tritonclient.http

    answers: dict[str, Any] = {}
    for name, package, port in (("http", tritonclient.http, http), ("grpc", tritonclient.grpc, grpc)):
        client = package.InferenceServerClient(f"{host}:{port}")
        answers[name] = {
            "right": infer(client, package, model, [3, 0, 7]),
            "index": infer(client, package, model, [3, 999_999]),
            "shape": infer(client, package, model, [3], rank=3),
            "again": infer(client, package, model, [1]),
        }
    # Many at once, so that Triton puts some together: a bad one must not fail its neighbours.
    client = tritonclient.http.InferenceServerClient(f"{host}:{http}", concurrency=16)
    waiting = []
    for number in range(64):
        given = tritonclient.http.InferInput("ids", (1, 1), "INT64")
        given.set_data_from_numpy(np.array([[999_999 if number % 16 == 9 else number % 50]], np.int64))
        waiting.append(client.async_infer(model, [given]))
    many = []
    for each in waiting:
        try:
            many.append(each.get_result().as_numpy("y").tolist())
        except tritonclient.http.InferenceServerException as error:
            many.append(str(error))
    answers["many"] = many
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])

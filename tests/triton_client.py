"""Records of image files by NVIDIA's client, `tritonclient`, in its environment (`make triton`).

    python triton_client.py HOST:PORT MODEL FILE...

It imports nothing of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput


def main() -> None:
    """Print the record of each file as a line of JSON; every other one asks for JSON."""
    address, model, *files = sys.argv[1:]
    client = InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.get_model_metadata(model)["inputs"][0]["name"] == "film"
    for number, file in enumerate(files):
        tensor = InferInput("film", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([Path(file).read_bytes()], dtype=np.object_))
        output = InferRequestedOutput("record", binary_data=number % 2 == 0)
        answer = client.infer(
            model, [tensor], outputs=[output], request_id=Path(file).name, model_version="1"
        )
        record = answer.as_numpy("record")[0]
        print(record.decode() if isinstance(record, bytes) else record)


if __name__ == "__main__":
    main()

"""Images of 15 MB a second: the receiver and DCMTK's `storescp` in turn, from DCMTK's `storescu`.

    python -m campaigns.throughput FOLDER ROUNDS SEED

It runs in a network namespace with a loopback alone, since `storescp` listens on every address.
`storescp` writes an image as it comes (`+B`) and syncs nothing; the cart syncs the image and the
ledger before it answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cart_peers import HOST, Server, free_port, is_listening, storescu
from receiving_cart import ReceivingCart

from benchmarks.measure import ratio, summary
from campaigns.images import DrawnImages
from campaigns.paths import environment
from deepcovid_edge.cart.store.ledger import Ledger

_ROWS, _COLUMNS = 3000, 2500
IMAGES = 8
"""Images of a round, over one association."""
PDU = 131_072


def throughput(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Measure in a namespace; the figures."""
    command = [sys.executable, "-m", "campaigns.throughput", folder, rounds, seed]
    up = 'ip link set lo up && exec "$@"'
    words = ["unshare", "-n", "sh", "-c", up, "sh", *map(str, command)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment())
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measured(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of each side in every round, the first not counted, and their ratio."""
    port, place = free_port(), folder / "storescp"
    place.mkdir(parents=True)
    command = ["storescp", "-aet", "CART", "-od", place, "+B", "-pdu", PDU, port]
    drawn = DrawnImages(seed, rows=_ROWS, columns=_COLUMNS)
    seconds: dict[str, list[float]] = {"cart": [], "storescp": []}
    with (
        Server(command, folder / "storescp.log", lambda: is_listening(port)),
        ReceivingCart(folder / "cart") as cart,
    ):
        for number in range(rounds + 1):
            images = _written(drawn, folder, number)
            for side, goal in (("cart", cart.port), ("storescp", port)):
                spent = _send(goal, images)
                if number:
                    seconds[side].append(spent)
            for path in (*images, *place.iterdir()):
                path.unlink()
        with Ledger(cart.spool, read_only=True) as ledger:
            kept = len(ledger.rows("SELECT id FROM image"))
    assert kept == IMAGES * (rounds + 1), "every image of the cart is in its ledger"
    rates = {side: [IMAGES / one for one in spent] for side, spent in seconds.items()}
    return {
        "images_a_round": IMAGES,
        "bytes": 2 * _ROWS * _COLUMNS,
        "pdu": PDU,
        "images_a_second": {side: summary(found) for side, found in rates.items()},
        "cart_to_storescp": ratio(seconds["storescp"], seconds["cart"]),
        "seed": seed,
    }


def _written(drawn: DrawnImages, folder: Path, number: int) -> list[Path]:
    paths = []
    for at in range(IMAGES):
        image = drawn.image(7 * (number * IMAGES + at))  # none is a lateral view
        paths.append(folder / f"{at}.dcm")
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def _send(port: int, images: list[Path]) -> float:
    options = ["-xe", "--max-send-pdu", PDU, "--max-pdu", PDU]
    started = time.perf_counter()
    done = storescu(port, *images, options=options, seconds=300)
    spent = time.perf_counter() - started
    if done.returncode or done.stdout.count("Success") < IMAGES:
        raise RuntimeError(f"{HOST}:{port}: {done.stdout[-2000:]}")
    return spent


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

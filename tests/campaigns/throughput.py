"""Films of 15 MB a second: the receiver and DCMTK's `storescp` in turn, from DCMTK's `storescu`.

    python -m campaigns.throughput FOLDER ROUNDS SEED

It runs in a network namespace with a loopback alone, since `storescp` listens on every address.
`storescp` writes a film as it comes (`+B`) and syncs nothing; the cart syncs the film and the
ledger before it answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cart_peers import HOST, ReceivingCart, Server, free_port, is_listening, storescu

from benchmarks.measure import ratio, summary
from campaigns.films import DrawnFilms
from campaigns.paths import environment
from deepcovid_edge.cart.store.ledger import Ledger

_ROWS, _COLUMNS = 3000, 2500
FILMS = 8
"""Films of a round, over one association."""
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
    drawn = DrawnFilms(seed, rows=_ROWS, columns=_COLUMNS)
    seconds: dict[str, list[float]] = {"cart": [], "storescp": []}
    with (
        Server(command, folder / "storescp.log", lambda: is_listening(port)),
        ReceivingCart(folder / "cart") as cart,
    ):
        for number in range(rounds + 1):
            films = _written(drawn, folder, number)
            for side, goal in (("cart", cart.port), ("storescp", port)):
                spent = _send(goal, films)
                if number:
                    seconds[side].append(spent)
            for path in (*films, *place.iterdir()):
                path.unlink()
        with Ledger(cart.spool, read_only=True) as ledger:
            kept = len(ledger.rows("SELECT id FROM film"))
    assert kept == FILMS * (rounds + 1), "every film of the cart is in its ledger"
    rates = {side: [FILMS / one for one in spent] for side, spent in seconds.items()}
    return {
        "films_a_round": FILMS,
        "bytes": 2 * _ROWS * _COLUMNS,
        "pdu": PDU,
        "films_a_second": {side: summary(found) for side, found in rates.items()},
        "cart_to_storescp": ratio(seconds["storescp"], seconds["cart"]),
        "seed": seed,
    }


def _written(drawn: DrawnFilms, folder: Path, number: int) -> list[Path]:
    paths = []
    for at in range(FILMS):
        film = drawn.film(7 * (number * FILMS + at))  # none is a lateral view
        paths.append(folder / f"{at}.dcm")
        film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
        film.save_as(paths[-1], enforce_file_format=True)
    return paths


def _send(port: int, films: list[Path]) -> float:
    options = ["-xe", "--max-send-pdu", PDU, "--max-pdu", PDU]
    started = time.perf_counter()
    done = storescu(port, *films, options=options, seconds=300)
    spent = time.perf_counter() - started
    if done.returncode or done.stdout.count("Success") < FILMS:
        raise RuntimeError(f"{HOST}:{port}: {done.stdout[-2000:]}")
    return spent


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

"""Writes a table with heavy tails, a category and a constant column, for docs/guides/own_data.md.

    python scripts/table.py table.csv 20000

a has Student's t law with 3 degrees of freedom, b = 0.7 a + z with normal z, and income is the
log-normal exp(3 + 0.6 z). The colour is red with the probability 1 / (1 + exp(-b)), else green or
blue alike. unit is always 7.
"""

import csv
import sys

import numpy as np


def columns(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The columns of n rows, a function of the seed."""
    rng = np.random.default_rng(seed)
    a = rng.standard_t(3, n)
    z = rng.standard_normal(n)
    b = 0.7 * a + z
    red = rng.random(n) < 1 / (1 + np.exp(-b))
    colour = np.where(red, "red", np.where(rng.random(n) < 0.5, "green", "blue"))
    unit = np.full(n, 7)
    return {"a": a, "b": b, "income": np.exp(3 + 0.6 * z), "colour": colour, "unit": unit}


def write(path: str, n: int) -> None:
    """Write a table of n rows as .csv."""
    table = columns(n)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(table)
        out.writerows(zip(*table.values(), strict=True))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))

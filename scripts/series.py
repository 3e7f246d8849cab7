"""The autocovariance of sampled series beside the exact one, at lags 0 to 20.

    fmdiff train data=ar1 out=runs/ar1
    fmdiff sample ckpt=runs/ar1 n=4096 out=runs/ar1/series
    python scripts/series.py data=ar1 runs/ar1/series/samples.npz [more/samples.npz]

Further words are keys of the data, like phi=0.8. A series gives one mean of x_i x_{i+k} over its
places; a standard error is that of the mean over the series. The last columns are the same of as
many series of the data itself.
"""

import json
import sys

import numpy as np
import torch
from torch import Tensor

from fmdiff.build import named
from fmdiff.tables import aligned

LAGS = 20


def autocovariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means (LAGS + 1,) of series x (n, 1, L), whose mean is 0, and their standard errors."""
    rows = x[:, 0].double()
    means = [(rows[:, lag:] * rows[:, : rows.shape[1] - lag]).mean(1) for lag in range(LAGS + 1)]
    each = torch.stack(means)
    return each.mean(1), each.std(1) / len(rows) ** 0.5


def report(file: str, name: str, keys: dict[str, str]) -> int:
    """Print the table of a file; return how many lags are off by 3 standard errors or more."""
    with np.load(file, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["arr_0"])
    data = named("data", name, **{key: json.loads(value) for key, value in keys.items()})
    exact = data.autocovariance(torch.arange(LAGS + 1))
    mean, se = autocovariance(x)
    real, real_se = autocovariance(data.sample(0, len(x), 1)[0])
    off, real_off = (mean - exact) / se, (real - exact) / real_se
    rows = [["lag", "exact", "samples", "se", "off by se", "data", "off by se"]]
    for lag in range(LAGS + 1):
        figures = exact[lag], mean[lag], se[lag], off[lag], real[lag], real_off[lag]
        rows.append([str(lag), *(f"{value:.4f}" for value in figures)])
    print(f"{file}: {len(x):,} series of {x.shape[2]} places")
    print(aligned(rows, left=0))
    bad = int((off.abs() >= 3).sum())
    print(
        f"{LAGS + 1 - bad} of {LAGS + 1} lags within 3 standard errors, most {off.abs().max():.2f}"
    )
    return bad


if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    choice = settings.pop("data", "ar1")
    sys.exit(any([report(file, choice, settings) for file in files]))

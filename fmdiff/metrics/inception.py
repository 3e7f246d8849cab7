"""FID's Inception network, from torch-fidelity (pip install 'fmdiff[fid]').

The weights are the converted TensorFlow graph of 2015-12-05, which defines FID, KID and the
Inception Score. torchvision's inception_v3 is another network and gives other numbers.
"""

import hashlib
import io
import os
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.metrics.features import Features, exactly, on

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
# the same file has one name in torch-fidelity and torchmetrics and another in pytorch-fid
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
SIZE = 95_628_359
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(Features):
    """Features (B, 2048) after the last pooling, and logits (B, 1008) without their bias.

    The Frechet distance of these features is the FID, and these logits give the Inception Score.
    Grey images are repeated to three channels. All images are resized to 299 x 299 as TensorFlow
    1 did.

    weights: the file. null takes $FMDIFF_INCEPTION, else the cache of torch.hub, and download=true
    fetches it there if it is missing. check: refuse a file with another SHA-256.

    Raises FmdiffError without torch-fidelity and for a missing, foreign or damaged file.
    Source: Heusel et al. 2017; Salimans et al. 2016; torch-fidelity (Obukhov et al. 2020).
    """

    name, distance, dimension, classes = "inception", "fid", 2048, 1008

    def __init__(
        self, weights: str | None = None, download: bool = False, check: bool = True
    ) -> None:
        path = find(weights, download)
        content = files.read_bytes(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        if check and self.sha256 != SHA256:
            raise FmdiffError(
                f"features=inception: {path} has {len(content):,} bytes with sha256 {self.sha256} "
                f"and is not {_published()}; give that file as features.weights=PATH, or set "
                "features.check=false if you mean this one"
            )
        self.net = network(content, path)
        self.device = torch.device("cpu")

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, H, W, C), C = 1 or 3 -> (B, 2048), (B, 1008), float32 on its device."""
        if pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            size = " x ".join(map(str, pixels.shape[1:]))
            raise FmdiffError(
                f"features=inception takes images of 1 or 3 channels, height x width x channels, "
                f"not {size}"
            )
        x = on(self.device, pixels)
        with exactly():
            return self.net(x.expand(-1, 3, -1, -1))

    def for_shape(self, shape: tuple[int, ...]) -> "Inception":
        """Raises FmdiffError for images (C, H, W) of neither 1 nor 3 channels. Returns itself."""
        if shape[0] not in (1, 3):
            raise FmdiffError(
                f"features=inception takes images of 1 or 3 channels, not {shape[0]}"
            )
        return self

    def to(self, device: str | torch.device) -> "Inception":
        """Move the network to a device. Returns itself."""
        self.device = torch.device(device)
        self.net.to(self.device)
        return self


def network(content: bytes, path: Path) -> nn.Module:
    """torch-fidelity's network with the weights in `content`, read without running code.

    path: the file of the weights, for messages. Raises FmdiffError without torch-fidelity and if
    the content is not weights of this network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise FmdiffError(
            "features=inception needs torch-fidelity: pip install 'fmdiff[fid]', or choose "
            "features=mnist, fashion_mnist or cifar10"
        ) from error
    # torch-fidelity would unpickle the file without restriction, so it gets our copy
    copy = io.BytesIO()
    try:
        torch.save(torch.load(io.BytesIO(content), weights_only=True), copy)
        copy.seek(0)
        # torch-fidelity's defaults: FID of 2048, ISC of logits_unbiased
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], copy)
    except Exception as error:  # damage raises many kinds of exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FmdiffError(
            f"features.weights={path} holds no weights of FID's Inception network: {reason}"
        ) from error


def find(weights: str | None, download: bool) -> Path:
    """The file of the weights: `weights`, $FMDIFF_INCEPTION or one in the cache of torch.hub.

    download: fetch a missing file to the cache. Raises FmdiffError if there is none.
    """
    for key, value in (
        ("features.weights", weights),
        ("FMDIFF_INCEPTION", os.environ.get("FMDIFF_INCEPTION")),
    ):
        if value:
            path = Path(value).expanduser()
            if path.is_file():
                return path
            raise FmdiffError(f"{key}={value} is not a file; it should be {_published()}")
    cache = Path(torch.hub.get_dir(), "checkpoints")
    for name in NAMES:
        if (cache / name).is_file():
            return cache / name
    if download:
        return fetch(cache / NAMES[0])
    raise FmdiffError(
        f"features=inception needs {_published()}: neither features.weights=PATH nor "
        f"FMDIFF_INCEPTION=PATH is given, and {cache} holds no {' or '.join(NAMES)}; set "
        "features.download=true to fetch it, or choose features=mnist, fashion_mnist or cifar10"
    )


def _published() -> str:
    return f"FID's Inception weights ({SIZE:,} bytes, sha256 {SHA256}, {URL})"


def fetch(path: Path) -> Path:
    """Download the weights to path. If that fails, path stays as it was.

    Raises FmdiffError if they cannot be fetched or other bytes arrive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with urlopen(URL, timeout=60) as source, files.whole(path) as file:
            while size <= SIZE and (block := source.read(2**20)):
                digest.update(block)
                size += file.write(block)
            if (size, digest.hexdigest()) != (SIZE, SHA256):
                raise FmdiffError(
                    f"features.download=true: {URL} gave {size:,} bytes with sha256 "
                    f"{digest.hexdigest()}, not {SIZE:,} bytes with sha256 {SHA256}"
                )
    except (OSError, HTTPException) as error:
        raise FmdiffError(
            f"features.download=true: {URL} could not be fetched to {path} ({error}); fetch it "
            "elsewhere and give it as features.weights=PATH"
        ) from error
    return path

"""Values that a key of a network cannot have are refused in a sentence that names the key."""

import pytest
import torch
from conftest import PLAIN, POINTS

from fmdiff import build
from fmdiff.errors import FmdiffError

SERIES, IMAGES, DIGITS = (2, 9), (1, 8, 8), ("data=digits", "model=unet")
NETWORKS = {  # of configs/model, made small
    "mlp": ((2,), {"hidden": 8, "frequencies": 2}),
    "mlp_classifier": ((2,), {"hidden": 8, "frequencies": 2}),
    "residual_mlp": ((2,), {"width": 8, "blocks": 1}),
    "unet_1d": (SERIES, {"channels": 8, "multipliers": [1, 2]}),
    "dit_1d": (SERIES, {"width": 8, "heads": 2, "depth": 1}),
    "unet": (IMAGES, {"channels": 8, "multipliers": [1, 2]}),
    "unet_flow_matching": (IMAGES, {"channels": 8, "multipliers": [1, 2]}),
    "ddpmpp": (IMAGES, {"channels": 8, "multipliers": [1, 2], "blocks": 1}),
    "classifier": (IMAGES, {"channels": 8, "multipliers": [1, 2]}),
    "dit_s": (IMAGES, {"width": 8, "heads": 2, "depth": 1}),
    "jit_mnist": (IMAGES, {"patch": 2, "width": 8, "heads": 2, "depth": 1, "start": 0}),
}
VALUES = (
    -3,
    -1,
    0,
    1,
    3,
    2.0,
    2.5,
    float("nan"),
    float("inf"),
    "abc",
    "",
    None,
    True,
    [],
    [0],
    ["a"],
    {},
)


def keys(name):
    return [key for key in build.spec_of("model", name) if key != "_target_"]


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in NETWORKS for key in keys(name)])
def test_a_network_works_or_its_key_is_named(name, key):
    shape, small = NETWORKS[name]
    refused = []
    for value in VALUES:
        try:
            net = build.named("model", name, **{**small, key: value}, shape=shape, classes=3)
        except FmdiffError as error:
            assert f"model.{key}=" in str(error) and "\n" not in str(error)
            refused.append(value)
        else:
            out = net(torch.randn(2, *shape), torch.tensor([1.0, 900.0]), torch.tensor([0, 3]))
            assert len(out) == 2 and not out.isnan().any()
    assert "abc" in refused and len(refused) > 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model.hidden=-3",), "model.hidden=-3 must be an integer >= 1"),
        (("model.layers=0",), "model.layers=0 must be an integer >= 1"),
        (("model.frequencies=-1",), "model.frequencies=-1 must be an integer >= 0"),
        ((*DIGITS, "model.channels=0"), "model.channels=0 must be an even integer >= 2"),
        ((*DIGITS, "model.channels=9"), "model.channels=9 must be an even integer >= 2"),
        (
            (*DIGITS, "model.multipliers=[]"),
            "model.multipliers=[] must be a list of integers >= 1",
        ),
        ((*DIGITS, "model.dropout=1.5"), "model.dropout=1.5 must be a number from 0 to 1"),
        (("data=digits", "model=dit_s", "model.depth=0"), "model.depth=0 must be an integer >= 1"),
    ],
)
def test_a_training_says_it_and_leaves_nothing(command, capfd, tmp_path, words, sentence):
    assert command("train", *PLAIN, *(POINTS if len(words) == 1 else ()), *words, "out=run") == 2
    said = capfd.readouterr().err
    assert f"fmdiff train: {sentence}" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())

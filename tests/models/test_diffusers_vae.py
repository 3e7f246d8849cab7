"""An AutoencoderKL that the diffusers library saved, against the library itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmdiff.build import build
from fmdiff.data.latent import Latents
from fmdiff.errors import FmdiffError
from fmdiff.loading import load_codec

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of the library, with random weights, and its model."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        latent_channels=3,
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("vae")
    model.eval().save_pretrained(folder)
    return folder, model


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the folder, to be changed."""
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((saved[0] / name).read_bytes())
    return tmp_path


def load(folder, shape=SHAPE):
    return load_codec(f"diffusers:{folder}", option="data.autoencoder", shape=shape)


def change(folder, **keys):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | keys))


def test_it_encodes_and_decodes_as_the_library_does(saved):
    folder, model = saved
    codec, x = load(folder), torch.rand(4, *SHAPE) * 2 - 1
    with torch.no_grad():
        law = model.encode(x).latent_dist
        torch.testing.assert_close(codec.encode(x), law.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.posterior(x)[1], law.logvar, atol=1e-5, rtol=0)
        z = torch.randn(4, 3, 8, 8)
        torch.testing.assert_close(codec.decode(z), model.decode(z).sample, atol=1e-5, rtol=0)
    assert codec.latent == (3, 8, 8) and codec.outer == SHAPE and codec.sha256
    assert not any(weight.requires_grad for weight in codec.parameters())


def test_standardised_it_is_the_library_times_a_scale(saved):
    folder, model = saved
    codec, x = load(folder), torch.rand(4, *SHAPE) * 2 - 1
    codec.standardise(torch.tensor([1.0, 2, 3]), torch.tensor([0.5, 1, 2]))
    mean = torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    scale = torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    with torch.no_grad():
        z = (model.encode(x).latent_dist.mean - mean) / scale
        torch.testing.assert_close(codec.encode(x), z, atol=1e-5, rtol=1e-5)
        back = model.decode(z * scale + mean).sample
        torch.testing.assert_close(codec.decode(z), back, atol=1e-5, rtol=0)


def test_a_checkpoint_builds_it_of_spec_and_state(saved):
    codec = load(saved[0])
    twin = build(codec.spec(), trust=())
    twin.load_state_dict(codec.state_dict())
    x = torch.rand(2, *SHAPE)
    assert torch.equal(twin.encode(x), codec.encode(x))


def test_half_precision_and_old_names_of_weights_are_taken(folder, saved):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(folder / WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        weights[name] = value.half()
    assert any("proj_attn" in name for name in weights)
    save_file(weights, folder / WEIGHTS)
    x = torch.rand(2, *SHAPE) * 2 - 1
    law = saved[1].encode(x).latent_dist
    torch.testing.assert_close(load(folder).encode(x), law.mean, atol=0.05, rtol=0.05)


def test_data_are_encoded_by_it(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    data = Latents(of="digits", autoencoder=f"diffusers:{saved[0]}")
    with pytest.raises(FmdiffError, match="takes images of 3 channels with sides divisible by 2"):
        data.prepare()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny', and only AutoencoderKL is taken"),
        ({"_class_name": ["x"]}, "only AutoencoderKL is taken"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, "has down_block_types="),
        ({"up_block_types": "UpDecoderBlock2D"}, "has up_block_types="),
        ({"layers_per_block": 10**9}, "asks for a model that is far larger"),
        ({"block_out_channels": [8, 2**40]}, "is no AutoencoderKL|far larger"),
        ({"block_out_channels": []}, "has block_out_channels="),
        ({"norm_num_groups": 0}, "has norm_num_groups=0"),
        ({"norm_num_groups": 3}, "is no AutoencoderKL"),
        ({"latent_channels": 4}, "is no AutoencoderKL"),
        ({"act_fn": {"_target_": "os.system"}}, "has act_fn="),
        ({"act_fn": "nothing"}, "is no AutoencoderKL"),
    ],
)
def test_a_forged_config_is_refused_in_a_sentence(folder, keys, words):
    change(folder, **keys)
    with pytest.raises(FmdiffError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_left_out(folder):
    change(folder, _name_or_path="elsewhere", new_key={"a": 1}, scaling_factor=0.5)
    assert load(folder).latent == (3, 8, 8)


def test_a_pickle_is_refused(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FmdiffError, match=r"model\.bin is a pickle, which can run code"):
        load(folder)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / WEIGHTS).unlink(), f"lacks {WEIGHTS}$"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no weights"), f"{WEIGHTS} cannot be read"),
        (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG} cannot be read"),
        (lambda f: (f / CONFIG).write_text("[" * 100_000), f"{CONFIG} cannot be read"),
        (lambda f: (f / CONFIG).write_text("[]"), "is of None, and only AutoencoderKL"),
        (lambda f: (f / CONFIG).unlink(), f"{CONFIG} cannot be read"),
    ],
)
def test_a_damaged_folder_is_a_sentence(folder, harm, words):
    harm(folder)
    with pytest.raises(FmdiffError, match=words):
        load(folder)


def test_a_folder_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(FmdiffError, match="is no folder: give one with config"):
        load(tmp_path / "nowhere")

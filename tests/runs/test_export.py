"""Exported weights: read by the safetensors library alone, and back by fmdiff."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import PLAIN, POINTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fmdiff
from fmdiff import files
from fmdiff.codec import Standard
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint, safetensors
from fmdiff.runs.content import Checkpoint


@pytest.fixture
def exported(command, tmp_path, moons_run):
    def run(*words, code=0, name="m.safetensors"):
        assert command("info", f"ckpt={moons_run}", f"export={name}", *words) == code
        return tmp_path / name

    return run


@pytest.mark.parametrize(("weights", "name"), [("ema", "0.9999"), ("raw", "raw"), (0.9, "0.9")])
def test_another_program_reads_the_weights_and_what_they_are(
    exported, moons_run, weights, name, capfd
):
    path, content = exported(f"weights={weights}"), checkpoint.read(moons_run / "last.ckpt")
    assert f"weights={name} at step 60" in capfd.readouterr().out
    with safe_open(path, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    stored = content["weights"][name]
    assert tensors.keys() == stored.keys()
    assert all(np.array_equal(tensors[key], stored[key].numpy()) for key in stored)
    about = json.loads(metadata["fmdiff"])
    assert about["spec"] == json.loads(json.dumps(content["spec"]))
    assert (about["version"], about["step"], about["weights"]) == (1, 60, name)
    # the checksum, by its words
    import hashlib

    kind = {"float32": "torch.float32", "int64": "torch.int64"}
    digests = {
        key: hashlib.sha256(
            f"{kind[str(a.dtype)]} {list(a.shape)} ".encode() + a.tobytes()
        ).hexdigest()
        for key, a in tensors.items()
    }
    sha256 = about.pop("sha256")
    text = json.dumps([about, digests], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


def test_it_samples_as_the_checkpoint_does(exported, moons_run, command, tmp_path, capfd):
    path = exported("weights=0.9")
    a = fmdiff.generate(fmdiff.load(moons_run, weights=0.9), n=50, steps=4, seed=1).x
    assert torch.equal(fmdiff.generate(fmdiff.load(path), n=50, steps=4, seed=1).x, a)
    capfd.readouterr()
    assert command("info", f"ckpt={path}") == 0
    said = capfd.readouterr().out
    assert "no, weights only" in said and "MLP(" in said and "0.9 " in said
    words = ("n=50", "steps=4", "device=cpu", "seed=1")
    assert command("sample", f"ckpt={path}", *words, "out=s") == 0
    assert np.array_equal(np.load(tmp_path / "s" / "samples.npz")["arr_0"], a.numpy())
    assert command("sample", f"ckpt={path}", "weights=raw", *words) == 2
    assert "m.safetensors holds 0.9" in capfd.readouterr().err


def test_a_run_can_start_from_it(exported, command, train, tmp_path):
    path = exported()
    words = (*POINTS, "trainer.max_steps=1", "optim.lr=1e-12", f"init={path}")
    begun = train(tmp_path / "run", *words)["weights"]["raw"]
    for key, value in load_file(path).items():
        torch.testing.assert_close(begun[key], value)


def test_what_it_exported_it_exports_again(exported, command, tmp_path):
    path = exported()
    assert command("info", f"ckpt={path}", "export=again.safetensors") == 0
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.fault
def test_it_is_not_overwritten_unasked(exported, capfd, monkeypatch):
    path = exported("weights=raw")
    before = path.read_bytes()
    exported(code=2)
    said = capfd.readouterr().err
    assert "m.safetensors exists" in said and "overwrite=true" in said
    assert path.read_bytes() == before

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", fail)
        exported("overwrite=true", code=2)
    assert "cannot be written: No space left" in capfd.readouterr().err
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
    exported("overwrite=true")
    assert path.read_bytes() != before
    for name, says in (("m.pt", "must end in .safetensors"), ("no/m.safetensors", "No such file")):
        exported(code=2, name=name)
        assert says in capfd.readouterr().err
    exported("weights=0.5", code=2, name="x.safetensors")
    assert ".ckpt holds" in capfd.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def damages(whole, count, seed):
    """Bytes with a part cut off, flipped, zeroed, doubled or put elsewhere."""
    rng = random.Random(seed)
    for _ in range(count):
        a, b = sorted(rng.sample(range(len(whole) + 1), 2))
        flip = rng.randrange(len(whole))
        yield rng.choice(
            [
                whole[:a],
                whole[a:],
                whole[:flip] + bytes([whole[flip] ^ 1 << rng.randrange(8)]) + whole[flip + 1 :],
                whole[:a] + bytes(b - a) + whole[b:],
                whole[:b] + whole[a:],
                whole[:a] + whole[b:] + whole[a:b],
                whole + rng.randbytes(rng.randrange(1, 99)),
            ]
        )


@pytest.mark.fault(count=400)
def test_four_hundred_damages(exported, tmp_path):
    """Damaged exports are named as damaged, never loaded with another content"""
    whole = exported().read_bytes()
    path = tmp_path / "damaged.safetensors"
    header = whole[: 8 + int.from_bytes(whole[:8], "little") + 40]
    found = [*damages(whole, 200, 0)]
    found += [part + whole[len(header) :] for part in damages(header, 200, 1)]
    for data in found:
        if data == whole:
            continue
        path.write_bytes(data)
        with pytest.raises(FmdiffError) as caught:
            checkpoint.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.fault
def test_files_of_others(tmp_path, command, capfd):
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}, {"fmdiff": "[" * 10**5}, {"fmdiff": "{}"}):
        save_file({"a": torch.ones(2)}, path, metadata)
        assert command("info", f"ckpt={path}") == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and str(path) in said
    about = {"version": 2, "step": 1, "weights": "raw", "spec": {}}
    about["sha256"] = safetensors._sha256(about, {"a": torch.ones(2)})
    save_file({"a": torch.ones(2)}, path, {"fmdiff": json.dumps(about)})
    with pytest.raises(FmdiffError, match="newer fmdiff"):
        checkpoint.read(path)
    with pytest.raises(FmdiffError, match="cannot be opened"):
        checkpoint.read(tmp_path / "absent.safetensors")
    assert command("train", *PLAIN, *POINTS, f"init={path}", "out=run") == 2


def test_the_codec_travels_with_the_weights_unrounded(moons_run, tmp_path):
    codec = Standard.of((2,), torch.tensor([1e6, 0.1]), torch.tensor([3.0, 1e-3]))
    content = checkpoint.read(moons_run / "last.ckpt")
    content["spec"]["data"]["codec"] = codec.spec()
    content["codec"] = codec.state_dict()
    checkpoint.write(tmp_path / "coded.ckpt", content)
    field = fmdiff.load(tmp_path / "coded.ckpt")
    stored = Checkpoint.of(checkpoint.read(tmp_path / "coded.ckpt"))
    state = stored.weights["raw"]
    safetensors.write(tmp_path / "m.safetensors", stored, "raw", state, False, half=True)
    exported = fmdiff.load(tmp_path / "m.safetensors", weights="raw")
    for loaded in (field, exported):
        assert torch.equal(loaded.codec.mean, codec.mean)
        assert torch.equal(loaded.codec.scale, codec.scale)
    assert (fmdiff.generate(exported, n=20, steps=3).x[:, 0] > 9e5).all()

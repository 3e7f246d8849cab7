"""Nothing that comes out of a file is ever run: each way in meets a file that asks for it."""

import io
import json
import os
import pickle
import sys
import zipfile
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import PLAIN, POINTS
from safetensors.torch import save_file

from fmdiff import build as build_rules
from fmdiff.build import build, locate, named
from fmdiff.data import folder, saved
from fmdiff.errors import FmdiffError
from fmdiff.formula import Formula
from fmdiff.loading import restore
from fmdiff.metrics import features, inception, reference
from fmdiff.runs import checkpoint
from fmdiff.runs.content import Checkpoint
from fmdiff.runs.find import find


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A folder that must not be there at the end."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


def npz(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def objects(marker):
    return np.array([Evil(marker), 1], dtype=object)


# Pickles


def pickled(kind, path, marker):
    """A file of a kind that asks for a folder to be made."""
    if kind == "npz":
        return npz(path, arr_0=objects(marker), mu=objects(marker), sigma=objects(marker))
    if kind == "facts":
        return npz(path, mu=np.ones(2), sigma=np.eye(2), data=objects(marker))
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, objects(marker))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(marker)))
    elif kind == "torch":
        torch.save({"arr_0": Evil(marker)}, path)
    elif kind == "legacy":
        torch.save(Evil(marker), path, _use_new_zipfile_serialization=False)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("arr_0.npy", "mu.npy", "archive/data.pkl"):
                archive.writestr(name, pickle.dumps(Evil(marker)))
    return path


READERS = {
    "checkpoint": checkpoint.read,
    "samples": lambda path: saved.read(path, "samples"),
    "statistics": reference.load,
    "features": lambda path: features.Classifier(str(path)),
    "inception": lambda path: inception.network(path.read_bytes(), path),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["npz", "facts", "npy", "pickle", "torch", "legacy", "zip"])
@pytest.mark.parametrize("reader", READERS)
def test_pickles_are_refused(tmp_path, marker, reader, kind):
    path = pickled(kind, tmp_path / "file", marker)
    with pytest.raises(FmdiffError) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value) and "allow_pickle" not in str(caught.value)


@pytest.mark.fault
def test_a_pickle_in_the_place_of_a_cached_array_is_not_read(tmp_path, marker):
    (tmp_path / "about.json").write_text(json.dumps({"train": 1, "levels": [], "broken": {}}))
    pickled("npy", tmp_path / "images.npy", marker)
    assert folder.load(tmp_path) is None


# Names of code


def in_checkpoint(tmp_path, run, target, /, part="source", **keys):
    content = checkpoint.read(run / "last.ckpt")
    content["spec"][part] = {"_target_": target, **keys}
    checkpoint.write(tmp_path / "other.ckpt", content)
    return tmp_path / "other.ckpt"


FOREIGN = [
    ("os.mkdir", {"path": "MARKER"}),
    ("fmdiff.cli.main", {"argv": ["train", "model._target_=os.mkdir", "+model.path=MARKER"]}),
    ("fmdiff.loading.load", {"ckpt": "MARKER", "trust": ["os."]}),
    ("fmdiff.build.build", {"spec": {"_target_": "os.mkdir", "path": "MARKER"}}),
    ("fmdiff.build.locate", {"target": "os.mkdir"}),
    ("fmdiff.metrics.inception.urlopen", {"url": "http://localhost:9"}),
    ("fmdiff.data.folder.Path", {}),
    ("fmdiff.data.folder.np.load", {"file": "MARKER", "allow_pickle": True}),
    ("fmdiff.runs.folder.new_folder", {"parent": "MARKER"}),
    ("torch.optim.swa_utils.deepcopy", {"x": 1}),
    ("torch.load", {"f": "MARKER", "weights_only": False}),
    # classes of folders that people add files to, which are none of what is added there
    ("fmdiff.data.folder.Converted", {}),
    ("fmdiff.data.files.Source", {}),
    ("fmdiff.metrics.features.Network", {}),
    ("fmdiff.metrics.features.exactly", {}),
    ("fmdiff.models.layers.zeroed", {}),
    ("fmdiff.solvers.exponential.State", {}),
    ("fmdiff.models.mlp.torch.load", {"f": "MARKER"}),
    ("fmdiff.models.mlp.generator", {"seed": 0}),
    ("fmdiff.fitted.times.Model", {}),
    ("fmdiff.commands.job.run", {"name": "train"}),
    ("fmdiff.commands.python.train", {}),
    ("torch.optim.lr_scheduler.LambdaLR", {}),
    ("torch.nn.Linear", {}),
    ("builtins.object", {}),
    (["os.mkdir"], {}),
    (7, {}),
]


@pytest.mark.fault
@pytest.mark.parametrize(("target", "keys"), FOREIGN, ids=lambda case: str(case)[:30])
def test_a_checkpoint_names_parts_of_models_alone(
    tmp_path, moons_run, marker, command, capfd, target, keys
):
    keys = json.loads(json.dumps(keys).replace("MARKER", str(marker)))
    for part in ("model", "path", "source"):
        path = in_checkpoint(tmp_path, moons_run, target, part, **keys)
        assert command("info", f"ckpt={path}") == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and ("trust=[" in said or "cannot be found" in said)


@pytest.mark.fault
@pytest.mark.parametrize("part", ["data", "models", "objectives", "metrics", "solvers"])
def test_a_new_file_of_a_folder_needs_no_row(monkeypatch, part):
    """What derives from the folder's contract may be named by a file, and nothing else."""
    base = locate(build_rules.CONTRACTS[f"fmdiff.{part}"])
    module = ModuleType(f"fmdiff.{part}.new")
    module.New = type("New", (base,), {"__module__": module.__name__})
    module.Other = type("Other", (), {"__module__": module.__name__})
    module.function = lambda: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert locate(f"{module.__name__}.New", ()) is module.New
    for name in ("Other", "function"):
        with pytest.raises(FmdiffError, match="trust"):
            locate(f"{module.__name__}.{name}", ())


@pytest.mark.fault
def test_what_a_file_says_of_trust_is_not_taken(tmp_path, moons_run, marker, command, capfd):
    inner = in_checkpoint(tmp_path, moons_run, "os.mkdir", path=str(marker))
    inner = inner.rename(tmp_path / "inner.ckpt")
    keys = {"w": 2.0, "ckpt": str(inner), "weights": "raw", "trust": ["os."]}
    for target in ("fmdiff.guidance.Autoguidance", "fmdiff.guidance.ByClassifier"):
        path = in_checkpoint(tmp_path, moons_run, target, **keys)
        assert command("info", f"ckpt={path}") == 2
        assert f"names {target!r}, which is no source" in capfd.readouterr().err
    named_keys = {"group": "guidance", "name": "autoguidance", **keys}
    path = in_checkpoint(tmp_path, moons_run, "fmdiff.build.named", **named_keys)
    assert command("info", f"ckpt={path}") == 2
    assert "names 'fmdiff.build.named', which is no source" in capfd.readouterr().err


@pytest.mark.fault
def test_a_name_of_ours_does_not_lead_out_of_our_configs(tmp_path, moons_run, marker, command):
    (tmp_path / "evil.yaml").write_text(f"_target_: os.mkdir\npath: {marker}\n")
    depth = "../" * 30
    for keys in (
        {"group": f"{depth}{tmp_path}", "name": "evil"},
        {"group": "data", "name": f"{depth}{tmp_path}/evil"},
        {"group": str(tmp_path), "name": "evil"},
    ):
        with pytest.raises(FmdiffError, match="unknown"):
            named(**keys)
        path = in_checkpoint(tmp_path, moons_run, "fmdiff.build.named", **keys)
        assert command("info", f"ckpt={path}") == 2
    keys = {"data": f"{depth}{tmp_path}/evil", "only": None}
    path = in_checkpoint(tmp_path, moons_run, "fmdiff.source.Dataset", "source", **keys)
    assert command("info", f"ckpt={path}") == 2


@pytest.mark.fault
def test_trust_is_given_by_the_user_alone(tmp_path, moons_run, command):
    path = in_checkpoint(tmp_path, moons_run, "os.mkdir", path=str(tmp_path / "made"))
    command("info", f"ckpt={path}", "trust=[os.]")
    assert (tmp_path / "made").is_dir()  # what the tests above would see, were they in vain


def test_every_name_of_our_configs_may_come_out_of_a_file():
    from fmdiff.build import config_folder

    found = set()
    for file in config_folder().glob("*/*.yaml"):
        for line in file.read_text().splitlines():
            if "_target_:" in line:
                found.add(line.partition("_target_:")[2].split(",")[0].split("#")[0].strip())
    assert len(found) > 60
    for target in found:
        assert callable(locate(target, ()))
    assert build({"_target_": "torch.optim.SGD", "lr": 0.1}, [torch.ones(1)], trust=())


@pytest.mark.fault
@pytest.mark.parametrize(
    "change",
    [
        {"solver": {"_target_": "os.mkdir", "path": "MARKER"}},
        {"data": {"_target_": "os.mkdir", "path": "MARKER"}},
        {"grid": {"w": [{"_target_": "os.mkdir", "path": "MARKER"}]}},
        {"trust": ["os."], "schedule": {"_target_": "os.mkdir", "path": "MARKER"}},
        {"solver": {"_target_": "fmdiff.cli.main", "argv": []}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_recipe_names_parts_of_fmdiff_alone(tmp_path, command, capfd, marker, change):
    words = ("model=exact", "data=gmm4", "n=200", "steps=2", "device=cpu", "metrics=[sw2]")
    assert command("evaluate", *words, "out=first") == 0
    recipe = json.loads((tmp_path / "first" / "results.json").read_text())
    recipe["config"] |= json.loads(json.dumps(change).replace("MARKER", str(marker)))
    (tmp_path / "evil.json").write_text(json.dumps(recipe))
    capfd.readouterr()
    assert command("evaluate", "result=evil.json", "out=second") == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "trust=[" in said


@pytest.mark.fault
@pytest.mark.parametrize(
    "line",
    [
        "model._target_=os.mkdir",
        "+x={_target_:os.mkdir}",
        "hydra/launcher=evil",
        "hydra.searchpath=[file:///tmp]",
        "+hydra.callbacks.x._target_=os.mkdir",
    ],
)
def test_what_a_run_was_told_names_no_code(tmp_path, command, capfd, marker, line):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "run" / "overrides").write_text(f"seed=0\n{line}\n")
    assert command("train", "resume=run") == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "names code" in said and line in said


@pytest.mark.fault
def test_tags_in_a_config_are_not_obeyed(tmp_path, command, capfd, marker):
    text = f"seed: !!python/object/apply:os.mkdir ['{marker}']\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    for word, sentence in (
        ("resume=run", "config.yaml cannot be read"),
        ("out=run", "holds a config.yaml that fmdiff did not write"),
    ):
        assert command("train", word) == 2
        said = capfd.readouterr().err
        assert sentence in said and "Traceback" not in said
    assert (tmp_path / "run" / "config.yaml").read_text() == text
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "evil.yaml").write_text(text)
    assert command("train", "--config-dir", tmp_path / "own", "model=evil") == 2
    command("report", "runs=run")


# safetensors


@pytest.mark.fault
def test_other_metadata_is_no_code(tmp_path, marker):
    path = tmp_path / "f.safetensors"
    for said in ("{", "[]", "null", f"__import__('os').mkdir('{marker}')", "[" * 100_000):
        save_file({"a": torch.ones(2)}, path, {"fmdiff": said})
        with pytest.raises(FmdiffError) as caught:
            features.Classifier(str(path))
        assert str(path) in str(caught.value)


# Formulas


HOSTILE = [
    "__import__('os').mkdir('MARKER')",
    "().__class__.__bases__[0].__subclasses__()",
    "t.__class__.__mro__",
    "t.numpy().tofile('MARKER')",
    "sin.__globals__",
    "(lambda: open('MARKER', 'w'))()",
    "[open('MARKER', 'w') for _ in (1,)][0]",
    "open('MARKER', 'w')",
    "f'{open(1)}'",
    "exec('1')",
    "t := 1",
    "sin(t, out=t)",
    "sin(*[t])",
    "sin(**{})",
    "t if t else t",
    "t @ t",
    "t << 99999999999",
    "t // t",
    "t[0]",
    "t, t",
    "{t: t}",
    "1j * t",
    "...",
    "None",
    "b'a'",
    "t\x00",
    "t\n+1\nimport os",
    "yield t",
    "await t",
    "9" * 299,
    "1e999999999",
    "(" * 299,
    "-" * 299,
    "sin(" * 74,
    "[" * 299,
    "\uff54.real",
    "\ud800",
]


@pytest.mark.fault(count=len(HOSTILE))
def test_formulas_are_read_and_never_run(marker):
    for text in HOSTILE:
        text = text.replace("MARKER", str(marker))
        try:
            value = Formula(text, ("t",), "path.alpha")(torch.tensor(0.5))
        except FmdiffError as error:
            assert "path.alpha=" in str(error) and "\n" not in str(error), text
        else:
            assert value.shape == () and set(text) <= set("0123456789e-.+*()t"), text


@pytest.mark.fault
@pytest.mark.parametrize(
    "text", ["9**9**9**9**9**9", "1" + "0" * 298, "2^2^2^2^2^2^2^2^2^2^2", "10**1000000000000"]
)
def test_huge_numbers_in_a_formula_fill_no_memory(text):
    with pytest.raises(FmdiffError, match=r"must be finite|cannot be read|a path goes"):
        from fmdiff.custom import Custom

        Custom(text, "1-t")


@pytest.mark.fault
def test_a_hostile_formula_ends_in_one_sentence(command, capfd, tmp_path, marker):
    hostile = f"__import__('os').mkdir('{marker}')"
    for words in (
        ("train", "path=custom", f'path.alpha="{hostile}"', 'path.beta="1-t"'),
        ("simulate", "system=formula", f'system.u="{hostile}"', "system.x0=1"),
        ("sample", "model=exact", "data=gmm4", "guidance=cfg", f'guidance.w="{hostile}"'),
    ):
        assert command(*words, "out=run") == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "alone" in said, said


# Archives that would fill the memory


@pytest.mark.fault
def test_archives_that_grow_are_refused(tmp_path):
    head = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (3 * 10**10, 3 * 10**4)}
    np.lib.format.write_array_header_1_0(head, about)
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("arr_0", "mu", "sigma"):
            archive.writestr(f"{name}.npy", head.getvalue() + bytes(1000))
    for read in (READERS["samples"], READERS["statistics"]):
        with pytest.raises(FmdiffError, match="huge"):
            read(path)


def altered(tree, depth=3, key=()):
    """(key, tree) for every part down to this depth: left out, or of another type or name."""
    for name, part in tree.items():
        others = [None, "x", [], {}, -1, {"_target_": "fmdiff.path.VP"}]
        for other in [..., *(o for o in others if type(o) is not type(part) or o != part)]:
            rest = {k: v for k, v in tree.items() if k != name}
            yield (*key, name, other), rest if other is ... else rest | {name: other}
        if isinstance(part, dict) and depth > 1:
            for deeper, new in altered(part, depth - 1, (*key, name)):
                yield deeper, tree | {name: new}


@pytest.mark.fault(count=400)
def test_forged_checkpoints_with_right_checksums(moons_run):
    """A checkpoint that was written by others ends in one sentence, or in a model"""
    whole = checkpoint.read(find(moons_run))
    content = {key: whole[key] for key in ("step", "weights", "spec")}
    count, refused = 0, 0
    for key, forged in altered(content):
        count += 1
        try:
            restore(Checkpoint.of(forged))
        except FmdiffError as error:
            refused += 1
            assert "\n" not in str(error), key
    assert count >= 400 and refused > count / 2


@pytest.mark.fault
def test_a_forged_checkpoint_by_command(moons_run, tmp_path, command, capfd):
    content = checkpoint.read(find(moons_run))
    del content["spec"]["model"]
    checkpoint.write(tmp_path / "forged.ckpt", content)
    ckpt = f"{tmp_path}/forged.ckpt"
    for words in (
        ("info", f"ckpt={ckpt}"),
        ("sample", f"ckpt={ckpt}", "n=2"),
        ("train", *PLAIN, *POINTS, f"init={ckpt}"),
    ):
        assert command(*words) == 2
        said = capfd.readouterr().err
        assert "spec.model is None" in said and "Traceback" not in said

"""data=array: what of a file is learned, held out, conditioned on, and refused."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import make

from fmdiff.build import build
from fmdiff.codec import Standard
from fmdiff.condition import Condition
from fmdiff.data import array, selection
from fmdiff.data.table import Table, rows_of
from fmdiff.errors import FmdiffError

N = 200
COLOURS = ("blue", "green", "red")


@pytest.fixture
def rows():
    """Columns of a table: heavy tails, a linear relation, a category, a constant, labels."""
    rng = np.random.default_rng(0)
    a = rng.standard_t(3, N)
    return SimpleNamespace(
        a=a,
        b=1000 + 5 * a + rng.normal(size=N),
        colour=rng.choice(COLOURS, N, p=(0.5, 0.3, 0.2)),
        unit=np.full(N, 7.0),
        kind=rng.choice(["cat", "dog"], N),
    )


def write(path, rows, **columns):
    columns = vars(rows) | columns
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))
    return path


def own(path, **keys):
    return make("array", **({"file": str(path), "batch_size": 16} | keys))


def everything(data):
    """All rows, training first, as the network sees them, with their labels."""
    parts = [data.examples(10**6), data.held_out(10**6)]
    return torch.cat([x for x, _ in parts]), [y for _, y in parts]


def test_a_table_is_standardised_and_its_categories_are_one_hot(tmp_path, rows, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path / "t.csv", rows)
    data = own(path, categorical=["colour"], label="kind")
    assert data.shape == (5,) and data.axes == 1 and data.training_size == 180
    assert data.names == ("cat", "dog") and data.classes == 2
    x, (ours, theirs) = everything(data)
    labels = torch.cat([ours, theirs])
    train = x[:180]
    assert torch.allclose(train[:, :2].mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(train[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5)
    assert (x[:, 2:].sum(1) == 1).all() and set(x[:, 2:].flatten().tolist()) == {0, 1}
    # every row of the file is there once, in the user's units, with its label
    back = data.codec.decode(x)
    assert data.codec.outer == (4,) and data.codec.column_names == ("a", "b", "colour", "unit")
    assert (back[:, 3] == 7).all()
    there = sorted(
        (round(b, 2), COLOURS[int(c)], data.names[k])
        for (_, b, c, _), k in zip(back.tolist(), labels.tolist(), strict=True)
    )
    want = zip(rows.b.round(2).tolist(), rows.colour.tolist(), rows.kind.tolist(), strict=True)
    assert [row[1:] for row in there] == [row[1:] for row in sorted(want)]
    assert np.allclose([row[0] for row in there], np.sort(rows.b), atol=0.02)
    assert "unit is constant, and samples return that constant" in caplog.text
    assert "200 samples of shape (4,), 20 of them held out, 2 classes (cat, dog)" in caplog.text


def test_the_codec_of_a_table_against_numpy(rows):
    x = torch.tensor(np.stack([rows.a, rows.b, np.arange(N) % 3, rows.unit], axis=1))
    codec = Table.of(x, ("a", "b", "c", "u"), {"c": ("p", "q", "r")})
    z = codec.encode(x)
    want = (rows.b - rows.b.mean()) / rows.b.std()
    assert np.allclose(z[:, 1], want) and torch.equal(
        z[:, 2:], torch.eye(3).double()[x[:, 2].long()]
    )
    assert torch.allclose(codec.decode(z), x) and codec.log_det() is None
    assert codec.decode(torch.tensor([[0, 0, 0.2, 0.9, 0.3]])).tolist()[0][2:] == [1, 7]
    numbers = Table.of(x[:, :2], ("a", "b"))
    assert numbers.log_det() == pytest.approx(-np.log(rows.a.std()) - np.log(rows.b.std()))
    steps = numbers.encode(x[:1, :2] + torch.eye(2)) - numbers.encode(x[:1, :2])
    assert numbers.log_det() == pytest.approx(torch.linalg.slogdet(steps).logabsdet.item())
    plain = Table.of(x, ("a", "b", "c", "u"), {"c": ("p", "q", "r")}, standardise=False)
    assert torch.equal(plain.encode(x)[:, :2], x[:, :2]) and torch.equal(
        plain.decode(plain.encode(x)), x
    )
    twin = build(codec.spec(), trust=())
    twin.load_state_dict(codec.state_dict())
    assert torch.equal(twin.decode(z), codec.decode(z)) and twin.width == 5


def test_rows_of_a_table_by_name():
    codec = Table(("a", "c"), {"c": ("p", "q")})
    x = np.array([[0.5, 1], [2, 0]], np.float32)
    assert rows_of(codec, x) == [["a", "c"], [0.5, "q"], [2, "p"]]
    labelled = rows_of(codec, x, np.array([1, 0]), ("cat", "dog"))
    assert labelled == [["a", "c", "label"], [0.5, "q", "dog"], [2, "p", "cat"]]


@pytest.mark.parametrize(
    "keywords",
    [
        {"names": []},
        {"names": "ab"},
        {"names": ["a"], "levels": {"b": ["p"]}},
        {"names": ["a"], "levels": {"a": [1]}},
        {"names": ["a"], "constant": {"a": 1}},
    ],
)
def test_codecs_that_a_file_may_not_describe(keywords):
    with pytest.raises(FmdiffError, match=r"a codec of a table .* cannot be built"):
        build({"_target_": "fmdiff.data.table.Table"} | keywords, trust=())


def test_batches_are_a_function_of_seed_and_step(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows)
    data, twin = (own(path, columns=["a", "b"], label="kind") for _ in range(2))
    x, y = data.batch(3, 7)
    again, labels = twin.batch(3, 7)
    assert torch.equal(x, again) and torch.equal(y, labels) and x.dtype == torch.float32
    assert torch.equal(data.batch(3, 7, slice(4, 9))[0], x[4:9])
    epoch = torch.cat([data.batch(0, k)[0] for k in range(45)])  # 45 * 16 = 4 * 180
    assert len(epoch.unique(dim=0)) == 180 and torch.equal(
        epoch[:180].sort(0).values, epoch[180:360].sort(0).values
    )
    z, _, augmentation = data.batches(3, range(7, 9))
    assert torch.equal(z[:16], x) and augmentation is None


def test_what_is_held_out(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows)

    def held(**keys):
        data = own(path, columns=["b"], **keys)
        x, _ = data.sample(0, 10**6, 0)
        assert len(x) == data.references and data.training_size + len(x) == N
        trained = {round(v, 3) for v in data.codec.decode(data.examples(10**6)[0])[:, 0].tolist()}
        assert not trained & {round(v, 3) for v in x[:, 0].tolist()}
        return sorted(x[:, 0].tolist())

    assert len(held()) == 20 and len(held(hold_out=0.25)) == 50
    assert held() == held() and held() != held(seed=1)
    marks = np.arange(N) % 4 == 0
    for values in (marks, marks.astype(int), np.where(marks, "test", "train")):
        write(path, rows, part=values)
        assert np.allclose(held(split="part"), np.sort(rows.b[marks]), rtol=1e-6)
    data = own(path, columns=["b"], split="part")
    assert "part" not in own(path, split="part", categorical=["colour", "kind"]).codec.column_names
    first, second = data.sample(0, 30, 5)[0], data.sample(10, 30, 5)[0]
    assert torch.equal(first[10:], second) and len(data.sample(40, 60, 0)[0]) == 10
    order = data.held_out(10)[0]
    assert torch.equal(order, data.held_out(50)[0][:10])


def test_a_second_file_is_held_out(tmp_path, rows):
    path, other = write(tmp_path / "t.csv", rows), tmp_path / "other.csv"
    few = SimpleNamespace(**{name: values[:30] for name, values in vars(rows).items()})
    few.colour = np.array(["red", "blue"] * 15)  # green is missing, so numbers would differ
    few.kind = np.full(30, "dog")
    write(other, few)
    keys = {"columns": ["a", "colour"], "categorical": ["colour"], "label": "kind", "cond": ["b"]}
    data = own(path, test=str(other), **keys)
    x, y = data.sample(0, 100, 0)
    assert data.training_size == N and len(x) == 30
    assert sorted(x[:, 1].tolist()) == [0] * 15 + [2] * 15  # of blue, green, red
    assert (y.parts["label"] == 1).all() and y.parts["b"].shape == (30, 1)
    few.colour = np.full(30, "violet")
    write(other, few)
    with pytest.raises(
        FmdiffError, match=r"data\.test=.* colour holds violet, and .* blue, green"
    ):
        own(path, test=str(other), **keys).sample(0, 1, 0)
    few.colour, few.kind = np.full(30, "red"), np.full(30, "cow")
    write(other, few)
    with pytest.raises(FmdiffError, match=r"the label holds cow, and its levels are cat, dog"):
        own(path, test=str(other), **keys).sample(0, 1, 0)


def test_conditions_of_a_table(tmp_path, rows):
    b = rows.b.copy().astype(object)
    b[:50] = ""
    path = write(tmp_path / "t.csv", rows, b=b)
    data = own(path, columns=["a"], cond=["b", "colour"], label="kind")
    forms = data.conditions
    assert forms["b"].shape == (1,) and forms["colour"].levels == COLOURS
    x, y = data.examples(180)
    assert isinstance(y, Condition) and set(y.parts) == {"label", "b", "colour"}
    known = y.parts["b"][~y.parts["b"].isnan()].double()
    assert forms["b"].mean[0] == pytest.approx(known.mean().item())
    assert forms["b"].std[0] == pytest.approx(known.std(correction=0).item())
    assert 100 < len(known) < 180 and known.min() > 900  # in the user's units, empty is unknown
    # the rows belong together
    at = {round(v, 3): c for v, c in zip(rows.a, rows.colour, strict=True)}
    a = data.codec.decode(x)[:, 0]
    names = [COLOURS[k] for k in y.parts["colour"].argmax(1).tolist()]
    assert [at[round(v, 3)] for v in a.tolist()] == names
    batch = data.batch(0, 0)[1]
    assert batch.parts["b"].shape == (16, 1) and batch.parts["colour"].dtype == torch.float32


def test_integer_labels_and_only(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows, kind=np.arange(N) % 3)
    data = own(path, columns=["a"], label="kind")
    assert data.names == () and data.classes == 3
    some = own(path, columns=["a"], label="kind", only=[2])
    assert some.classes == 3 and set(some.examples(500)[1].tolist()) == {2}
    assert len(some.examples(500)[0]) + some.references == len(range(2, N, 3))
    write(path, rows, kind=5 + np.arange(N) % 3)
    named = own(path, columns=["a"], label="kind", only=["6"])
    assert named.names == ("5", "6", "7") and set(named.examples(9)[1].tolist()) == {1}
    assert own(path, columns=["a"], label="kind", conditional=False).classes == 0
    with pytest.raises(FmdiffError, match=r"data\.only=.*no class has this name"):
        own(path, columns=["a"], label="kind", only=["9"]).examples(1)
    with pytest.raises(FmdiffError, match=r"data\.conditional=true needs data\.label=NAME"):
        own(path, columns=["a"], conditional=True).examples(1)


def gaps(tmp_path, rows):
    a, colour = rows.a.astype(object), rows.colour.astype(object)
    a[[3, 5]], colour[[5, 7, 9]] = "", "NA"
    return write(tmp_path / "t.csv", rows, a=a, colour=colour, part=1 * (np.arange(N) % 4 == 0))


def test_missing_features(tmp_path, rows):
    path = gaps(tmp_path, rows)
    keys = {"columns": ["a", "b", "colour"], "categorical": ["colour"]}
    says = r"5 missing values \(a 2, colour 3\): data\.missing=drop leaves out these 4 of 200 rows"
    with pytest.raises(FmdiffError, match=says):
        own(path, **keys).examples(1)
    data = own(path, missing="drop", **keys)
    assert data.training_size + data.references == N - 4
    x, _ = everything(data)
    assert x.isfinite().all()
    data = own(path, missing="mean", split="part", **keys)
    back = data.codec.decode(everything(data)[0])
    assert data.training_size + data.references == N
    near = [back[(back[:, 1] - b).abs().argmin()] for b in rows.b]
    a = [v for k, v in enumerate(rows.a) if k not in (3, 5) and k % 4]
    for k in (3, 5):  # the mean of what is trained on
        assert near[k][0].item() == pytest.approx(np.mean(a), abs=1e-4)
    trained = data.codec.decode(data.examples(500)[0])
    mode = trained[:, 2].long().bincount().argmax()
    for k in (5, 7, 9):
        assert near[k][2] == mode


def test_infinite_numbers_and_missing_labels(tmp_path, rows):
    a = rows.a.copy()
    a[4] = np.inf
    path = write(tmp_path / "t.csv", rows, a=a)
    with pytest.raises(FmdiffError, match=r"holds 1 infinite value \(a 1\): correct them"):
        own(path, columns=["a"]).examples(1)
    with pytest.raises(FmdiffError, match=r"1 infinite value \(a 1\)"):
        own(path, columns=["b"], cond=["a"]).examples(1)
    kind = rows.kind.astype(object)
    kind[:6] = ""
    path = write(tmp_path / "t.csv", rows, kind=kind)
    with pytest.raises(FmdiffError, match=r"6 missing values \(the label 6\)"):
        own(path, columns=["a"], label="kind").examples(1)
    data = own(path, columns=["a"], label="kind", missing="drop")
    assert data.training_size + data.references == N - 6
    with pytest.raises(FmdiffError, match=r"6 rows without a label, .* data\.missing=drop"):
        own(path, columns=["a"], label="kind", missing="mean").examples(1)


def test_duplicates_are_said(tmp_path, caplog):
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", np.concatenate([x, x[:7]]))
    own(tmp_path / "a.npy").examples(1)
    assert "7 rows are duplicates of others" in caplog.text
    caplog.clear()
    np.save(tmp_path / "a.npy", x)
    own(tmp_path / "a.npy").examples(1)
    assert "duplicates" not in caplog.text


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 16), (4, 6, 6)])
@pytest.mark.parametrize("dtype", ["<f2", ">f8", "<i4", "u1"])
def test_arrays_of_every_shape(tmp_path, shape, dtype):
    x = (40 + 30 * np.random.default_rng(0).normal(size=(50, *shape))).clip(1, 200).astype(dtype)
    np.save(tmp_path / "a.npy", x)
    data = own(tmp_path / "a.npy", pixels=False)
    outer = shape or (1,)
    assert data.shape == outer == data.codec.outer and data.axes == len(outer)
    assert isinstance(data.codec, Table if len(outer) == 1 else Standard)
    assert data.axes_of({"file": str(tmp_path / "a.npy")}) == len(outer)
    z = data.examples(100)[0].double()
    over = (0, *range(2, z.ndim))
    assert torch.allclose(z.mean(over), torch.zeros(outer[0]).double(), atol=1e-4)
    assert torch.allclose(z.square().mean(over), torch.ones(outer[0]).double(), atol=1e-3)
    assert data.std == pytest.approx(1, abs=0.02) and data.centre is None
    back = torch.cat([data.codec.decode(data.examples(100)[0]), data.sample(0, 9, 0)[0]])
    want = np.sort(x.astype(np.float64).reshape(50, -1), axis=0)
    assert np.allclose(back.flatten(1).sort(0).values, want, rtol=1e-3, atol=1e-2)
    assert torch.allclose(data.comparable(back).mean(), torch.zeros(()), atol=0.1)
    raw = own(tmp_path / "a.npy", pixels=False, standardise=False)
    assert raw.codec is None
    centre = raw.centre.flatten()[0].item()
    assert centre == pytest.approx(raw.examples(99)[0][:, 0].double().mean().item())
    assert raw.std == pytest.approx(x.astype(np.float64).std(), rel=0.2)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_of_pictures_are_pixels(tmp_path, channels, last, caplog):
    caplog.set_level("INFO")
    x = np.random.default_rng(0).integers(0, 256, (40, channels, 8, 6), np.uint8)
    np.save(tmp_path / "a.npy", x.transpose(0, 2, 3, 1) if last else x)
    data = own(tmp_path / "a.npy")
    assert data.shape == (channels, 8, 6) and data.codec is None and data.centre is None
    z = torch.cat([data.examples(99)[0], data.sample(0, 99, 0)[0]])
    back = ((z + 1) * 127.5).round().flatten(1)
    assert sorted(map(tuple, back.long().tolist())) == sorted(
        map(tuple, x.reshape(40, -1).tolist())
    )
    assert data.std == pytest.approx((data.examples(99)[0].double()).std(correction=0).item())
    assert "(pixels)" in caplog.text


def test_arrays_by_name(tmp_path):
    rng = np.random.default_rng(0)
    x, c, s = rng.normal(size=(50, 3)), rng.normal(size=(50, 2, 5)), rng.normal(size=50)
    s[:10] = np.nan
    y = np.array(["b", "a"] * 25)
    np.savez(tmp_path / "a.npz", x=x, y=y, c=c, s=s, half=np.arange(50) % 2, extra=np.zeros(3))
    data = own(tmp_path / "a.npz", key="x", label="y", cond=["c", "s"], split="half")
    assert data.names == ("a", "b") and data.training_size == data.references == 25
    assert data.conditions["c"].shape == (2, 5) and len(data.conditions["c"].mean) == 2
    z, given = data.examples(25)
    row = int(np.abs(x[:, 0] - data.codec.decode(z)[4, 0].item()).argmin())
    assert row % 2 == 0 and np.allclose(given.parts["c"][4], c[row])
    assert given.parts["label"][4] == int(y[row] == "b")
    assert given.parts["s"].isnan().sum() == np.isnan(s[::2]).sum()
    assert np.allclose(data.conditions["c"].std, c[::2].std((0, 2)), rtol=1e-5)


def test_a_missing_number_of_an_array(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 2, 8)).astype(np.float32)
    x[3, 1, :2] = np.nan
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(FmdiffError, match=r"holds 2 missing values: .*these 1 of 50 rows"):
        own(tmp_path / "a.npy").examples(1)
    assert own(tmp_path / "a.npy", missing="drop").training_size == 44
    filled = own(tmp_path / "a.npy", missing="mean")
    z, _ = everything(filled)
    assert z.isfinite().all() and (z[:, 1].abs() < 1e-6).sum() == 2


def test_a_file_larger_than_a_quarter_of_the_memory_stays_there(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(3, 2, (500, 2, 8)).astype(np.float16)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(500) % 2)
    small = own(tmp_path / "a.npz", key="x", label="y")
    small.examples(1)
    monkeypatch.setattr("fmdiff.machine.device.memory", lambda: 1000)
    large = own(tmp_path / "a.npz", key="x", label="y")
    assert large.train.x is None and small.train.x is not None
    assert isinstance(large.content.x.values, np.memmap)
    assert torch.allclose(small.codec.mean, large.codec.mean)
    for one, other in (
        (small.held_out(20), large.held_out(20)),
        (small.sample(3, 9, 1), large.sample(3, 9, 1)),
        (small.examples(30), large.examples(30)),
    ):
        assert torch.allclose(one[0], other[0]) and torch.equal(one[1], other[1])
    assert large.std == pytest.approx(small.std, rel=1e-4)
    with pytest.raises(
        FmdiffError, match=r"data\.missing=drop: .* too large to be looked through"
    ):
        own(tmp_path / "a.npz", key="x", missing="drop").examples(1)


def test_the_digest_tells_a_changed_file(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows)
    before = own(path, columns=["a"]).fingerprint()
    assert before["count"] == N and own(path, columns=["a"]).fingerprint() == before
    rows.a[0] += 1
    assert own(write(path, rows), columns=["a"]).fingerprint() != before
    changed = tmp_path / "large.bin"
    changed.write_bytes(bytes(1000))
    first = selection.digest([changed])
    with changed.open("r+b") as file:
        file.seek(990)
        file.write(b"x")
    assert selection.digest([changed]) != first


def test_a_checkpoint_needs_no_file_to_be_built(tmp_path):
    data = own(tmp_path / "gone.csv")
    with pytest.raises(FmdiffError, match=r"data\.file=.*gone\.csv cannot be read: No such file"):
        _ = data.shape
    assert array.Array.axes_of({"file": str(tmp_path / "gone.npy")}) is None
    assert array.Array.axes_of({"file": str(tmp_path / "gone.csv")}) == 1


TABLE = 'a,b,colour,price\n1,2,red,"1,5"\n3,4,blue,"2,5"\n5,6,red,"3,5"\n'
SLIPS = [
    (
        {},
        r"the column colour holds texts \(blue, red\); choose data\.categorical=\[colour\], "
        r"data\.label=colour or data\.cond=\[colour\], or leave it out by data\.columns=",
    ),
    ({"columns": ["price"]}, r"the column price holds numbers like 1,5; .*data\.decimal=','"),
    ({"columns": ["A"]}, r"data\.columns: .* has no column A; .*hoose from: a, b, colour, price"),
    ({"label": "color"}, r"data\.label: .* no column color; did you mean 'colour'\?"),
    ({"cond": ["z"]}, r"data\.cond: .* has no column z"),
    (
        {"split": "a", "columns": ["b"]},
        r"data\.split=a holds 1, 3, 5: 1, true or test hold a row out",
    ),
    ({"key": "x"}, r"data\.key=x: a table has columns; choose data\.columns="),
    ({"columns": ["a"], "cond": ["a"]}, "no columns left to learn"),
    ({"file": None}, r"data=array needs data\.file=PATH"),
    ({"columns": "a"}, r"data\.columns=a must be a list of names"),
    ({"columns": [1]}, r"data\.columns=\[1\] must be a list of names"),
    ({"hold_out": 1.0}, r"data\.hold_out=1\.0 must be a number between 0 and 1"),
    ({"missing": "zero"}, r"data\.missing=zero must be error, drop or mean"),
    ({"delimiter": "::"}, r"data\.delimiter=:: must be one character, tab or space"),
    ({"decimal": "x"}, r"data\.decimal=x must be"),
    ({"split": "a", "test": "b.csv"}, "both hold rows out; choose one"),
    ({"columns": ["a"], "cond": ["label"]}, "the name 'label' cannot be typed as cond.NAME"),
    ({"columns": ["a"], "cond": ["a b"]}, "the name 'a b' cannot be typed as cond.NAME"),
    ({"columns": ["a"], "label": "b", "pixels": True}, r"data\.pixels=true: .* holds float64"),
]


@pytest.mark.parametrize(("keys", "says"), SLIPS, ids=[str(keys) for keys, _ in SLIPS])
def test_slips_of_tables(tmp_path, keys, says):
    (tmp_path / "t.csv").write_text(TABLE)
    with pytest.raises(FmdiffError, match=says):
        own(tmp_path / "t.csv", **keys).examples(1)


def test_prices_with_decimal_commas(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    data = own(tmp_path / "t.csv", columns=["price"], decimal=",")
    back = [*data.codec.decode(data.examples(3)[0])[:, 0], *data.sample(0, 3, 0)[0][:, 0]]
    assert sorted(map(float, back)) == [1.5, 2.5, 3.5]


ARRAY_SLIPS = [
    ({}, r"holds the arrays x \(9, 3\), y \(9,\), .*; choose one by data\.key=NAME"),
    ({"key": "z"}, r"data\.key: .* has no array z; choose from"),
    ({"key": "x", "columns": ["x"]}, r"data\.columns=\['x'\]: .* is no table"),
    ({"key": "x", "label": "x"}, "and \\(N,\\) is needed"),
    ({"key": "x", "label": "few"}, "few has the shape .4,. and x .9, 3.; both need one row"),
    ({"key": "x", "label": "y"}, r"data\.label=y holds numbers that are no integers.*data\.cond"),
    ({"key": "deep"}, r"samples of shape \(2, 2, 2, 2\): points"),
    ({"key": "one"}, "has 1 row, and 2 are needed"),
    ({"key": "same"}, "is constant: there is nothing to learn"),
    ({"key": "still"}, "is constant: there is nothing to learn"),
    ({"key": "x", "split": "all"}, "has 0 rows to train on and 9 held out"),
]


@pytest.mark.parametrize(("keys", "says"), ARRAY_SLIPS, ids=[str(k) for k, _ in ARRAY_SLIPS])
def test_slips_of_arrays(tmp_path, keys, says):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(9, 3)), "y": rng.normal(size=9), "few": np.arange(4)}
    arrays |= {"deep": np.zeros((9, 2, 2, 2, 2)), "one": np.zeros((1, 3)), "same": np.ones((9, 2))}
    arrays["still"] = np.full((9, 2, 4), 0.1, np.float32)
    np.savez(tmp_path / "a.npz", **arrays, all=np.ones(9, int))
    with pytest.raises(FmdiffError, match=says):
        own(tmp_path / "a.npz", **keys).examples(1)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(FmdiffError, match=r"a\.xlsx is no \.npy, .*\.csv, .*\.parquet file"):
        own(tmp_path / "a.xlsx").examples(1)
    np.save(tmp_path / "a.npy", np.zeros((9, 2)))
    with pytest.raises(FmdiffError, match=r"data\.label=y: .* holds one array without a name"):
        own(tmp_path / "a.npy", label="y").examples(1)

"""What data=array reads: tables and arrays of every format, odd ones and hostile ones."""

import io
import os
import pickle
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fmdiff.data import stored
from fmdiff.data.delimited import Delimited, grouped
from fmdiff.data.parquet import Parquet
from fmdiff.errors import FmdiffError

NAN = float("nan")


def table(tmp_path, text, encoding="utf-8", **keys):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return Delimited(path, "data.file=t.csv", **keys)


def content(file):
    """The columns of a table: numbers, or texts with None where one is missing."""
    columns = file.read(file.names)
    return {
        name: column.values.tolist()
        if column.levels is None
        else [None if code < 0 else column.levels[code] for code in column.values]
        for name, column in columns.items()
    }


PLAIN = {"a": [1.0, -2.5], "b c": ["red", "blue"]}


@pytest.mark.parametrize(
    "text",
    [
        "a,b c\n1,red\n-2.5,blue\n",
        "a;b c\n1;red\n-2.5;blue",
        "a\tb c\r\n1\tred\r\n-2.5\tblue\r\n",
        "a|b c\n1|red\n-2.5|blue\n",
        "\ufeffa,b c\n1,red\n-2.5,blue\n",
        "\n a , b c \n\n1 , red\n -2.5, blue \n\n",
        '"a","b c"\n"1","red"\n"-2.5","blue"\n',
        "# a, b c\n1.0e0, red\n-25e-1, blue\n",
        "a,b c\r1,red\r-2.5,blue\r",
    ],
)
def test_one_table_in_many_spellings(tmp_path, text):
    assert content(table(tmp_path, text)) == PLAIN


def test_the_text_of_spreadsheets_is_utf_16(tmp_path):
    assert content(table(tmp_path, "a\tb c\n1\tred\n-2.5\tblue\n", "utf-16")) == PLAIN


def test_quotes_hold_delimiters_quotes_and_line_ends(tmp_path):
    read = content(table(tmp_path, 'a,b\n"1","x, ""y""\nz"\n2,w\n'))
    assert read == {"a": [1, 2], "b": ['x, "y"\nz', "w"]}


def test_numbers_alone_are_no_header(tmp_path):
    assert content(table(tmp_path, "1,2\n3,4\n")) == {"x1": [1, 3], "x2": [2, 4]}
    file = io.StringIO()
    np.savetxt(file, np.array([[1.5, -2], [3, 4e-30]]))
    read = content(table(tmp_path, file.getvalue()))
    assert read == {"x1": [1.5, 3], "x2": [-2, 4e-30]}
    assert content(table(tmp_path, "5\n6\n7\n")) == {"x1": [5, 6, 7]}


def test_a_header_may_hold_numbers_if_the_user_says_so(tmp_path):
    text = "name,2019,2020\nx,1,2\n"
    with pytest.raises(
        FmdiffError, match=r"first row, name, 2019, 2020, .*data\.header=true or f"
    ):
        content(table(tmp_path, text))
    read = content(table(tmp_path, text, header=True))
    assert read == {"name": ["x"], "2019": [1], "2020": [2]}
    assert content(table(tmp_path, "red,1\nblue,2\n", header=False))["x1"] == ["red", "blue"]


def test_missing_values(tmp_path):
    read = content(table(tmp_path, "a,b\n,x\nNA,\n3,null\nnan, y\n"))
    assert read["b"] == ["x", None, None, "y"]
    assert np.array_equal(read["a"], [NAN, NAN, 3, NAN], equal_nan=True)


def test_texts_that_begin_like_numbers_stay_as_they_are_written(tmp_path):
    """Rows beyond the first chunk decide the kind of a column, from its first row on."""
    lines = [f"{i:04d}" for i in range(2000)] + ["x"]
    read = content(table(tmp_path, "id,n\n" + "".join(f"{t},1\n" for t in lines)))
    assert read["id"] == lines and read["n"] == [1] * 2001
    assert content(table(tmp_path, "a,b\n1_000,1\n2,2\n"))["a"] == ["1_000", "2"]


def test_decimal_commas_and_groups_of_digits(tmp_path):
    german = "a;b\n1.234,5;1\n-7,25;2\n"
    assert content(table(tmp_path, german, decimal=","))["a"] == [1234.5, -7.25]
    english = 'a,b\n"1,234,567.5",1\n12,2\n'
    assert content(table(tmp_path, english, decimal="."))["a"] == [1234567.5, 12]
    assert grouped(table(tmp_path, english).read(["a"])["a"]) == "1,234,567.5"
    assert grouped(table(tmp_path, german).read(["a"])["a"]) == "-7,25"
    assert grouped(table(tmp_path, "a,b\n1,x\n2,y\n").read(["b"])["b"]) is None


def test_an_index_without_a_name_is_left_out(tmp_path, caplog):
    assert content(table(tmp_path, ",a\n0,5\n1,6\n")) == {"a": [5, 6]}
    assert "first column has no name" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("a,b\n", "has a header and no rows"),
        ("a,b\n1,2\n3\n", r"row 2 after the header has 1 values, and the first row has 2; .*','"),
        ("a,b\n1,2\n3,4,5\n", "row 2 after the header has 3 values"),
        ("a,a,b\n1,2,3\n", "several columns have the name a"),
        ("a,b,\n1,2,\n", "column 3 of 3 has no name"),
        ('a,b\n1,"x\n2,y\n' + "z\n" * 200_000, "is a quote not closed"),
        (b"a,b\n1,2\n\xe9,3\n", "no text in UTF-8: it holds the byte 0xe9"),
        (b"a,b\n1,\xff\n", "0xff; save the table as UTF-8"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, says):
    with pytest.raises(FmdiffError, match=says) as error:
        content(table(tmp_path, text))
    assert str(error.value).startswith("data.file=t.csv")


def test_a_pipe_or_a_folder_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for name, says in (("pipe.csv", "no regular file"), (".", "directory"), ("no.csv", "No such")):
        with pytest.raises(FmdiffError, match=f"cannot be read: .*{says}"):
            _ = Delimited(tmp_path / name, "data.file=x").names


def test_columns_are_numbered_in_the_order_of_their_levels(tmp_path):
    column = table(tmp_path, "a\nb\na\n\nc\nNA\n", header=False).read(["x1"])["x1"]
    assert column.levels == ("a", "b", "c") and column.values.tolist() == [0, 1, 0, 2, -1]
    numbers = table(tmp_path, "n,m\n10,0\n2,0\n2.5,0\n,0\n").read(["n"])["n"].categories()
    assert numbers.levels == ("2", "2.5", "10") and numbers.values.tolist() == [2, 0, 1, -1]
    assert numbers.recoded(("10", "2.5", "2"), "x").values.tolist() == [0, 2, 1, -1]
    with pytest.raises(FmdiffError, match=r"^x holds 10, and its levels are 2, 2.5"):
        numbers.recoded(("2", "2.5"), "x")


# Parquet


def parquet(tmp_path, columns):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(pa.table(columns), tmp_path / "t.parquet")
    return Parquet(tmp_path / "t.parquet", "data.file=t.parquet")


def test_parquet_columns_of_all_kinds(tmp_path):
    pa = pytest.importorskip("pyarrow")
    read = content(
        parquet(
            tmp_path,
            {
                "whole": pa.array([1, None, 3], pa.int16()),
                "half": pa.array(np.array([0.5, 1, -2], np.float16)),
                "yes": pa.array([True, False, None]),
                "price": pa.array([Decimal("1.25"), None, Decimal("-3.50")]),
                "text": pa.array(["b", None, "a"]),
                "coded": pa.array(["x", "y", "x"]).dictionary_encode(),
            },
        )
    )
    assert np.array_equal(read["whole"], [1, NAN, 3], equal_nan=True)
    assert read["half"] == [0.5, 1, -2]
    assert np.array_equal(read["yes"], [1, 0, NAN], equal_nan=True)
    assert np.array_equal(read["price"], [1.25, NAN, -3.5], equal_nan=True)
    assert read["text"] == ["b", None, "a"] and read["coded"] == ["x", "y", "x"]


def test_parquet_files_that_are_refused(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    dates = parquet(tmp_path, {"when": pa.array([0, 1], pa.timestamp("s")), "a": [1, 2]})
    assert dates.read(["a"])["a"].values.tolist() == [1, 2]
    with pytest.raises(FmdiffError, match=r"the column when holds timestamp\[.*data\.columns="):
        dates.read(["when"])
    with pytest.raises(FmdiffError, match="has no rows"):
        parquet(tmp_path, {"a": pa.array([], pa.int8())}).read(["a"])
    bomb = parquet(tmp_path, {"a": pa.array(np.zeros(10**7, np.int8))})
    monkeypatch.setattr("fmdiff.data.parquet.LARGE", 10**6)
    with pytest.raises(FmdiffError, match="refused: it would unpack to 80,000,000 bytes"):
        bomb.read(["a"])
    (tmp_path / "no.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(FmdiffError, match=r"damaged or no .parquet file"):
        _ = Parquet(tmp_path / "no.parquet", "x").names
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(FmdiffError, match=r"pip install 'fmdiff\[tables\]', or save .* as .csv"):
        _ = Parquet(tmp_path / "t.parquet", "x").names


# Arrays

X = np.arange(24).reshape(4, 2, 3)
TYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">i8", "<u8", "<f2", ">f4", "<f4", ">f8", "<f8"]


def save_npz(path, x):
    np.savez(path, x=x, y=np.arange(4))


def save_packed(path, x):
    np.savez_compressed(path, x=x, y=np.arange(4))


def save_tensors(path, x):
    save_file({"x": np.ascontiguousarray(x.astype(x.dtype.newbyteorder("=")))}, path)


def save_pt(path, x):
    torch.save({"x": torch.tensor(x.astype(x.dtype.newbyteorder("="))), "note": "hello"}, path)


FORMATS = {
    "a.npy": np.save,
    "b.npz": save_npz,
    "c.npz": save_packed,
    "d.safetensors": save_tensors,
    "e.pt": save_pt,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_type_in_every_format(tmp_path, name, dtype):
    x = X.astype(dtype)
    FORMATS[name](tmp_path / name, x)
    header = stored.headers(tmp_path / name, "t")["" if name.endswith("npy") else "x"]
    assert header.shape == (4, 2, 3)
    rows = stored.rows(header, "x", "t")
    assert rows.shape == (2, 3) and len(rows) == 4
    for index in (slice(1, 3), torch.tensor([3, 0, 0])):
        part = rows[index]
        want = torch.tensor(X.astype(np.float64))[index]
        assert part.dtype in (torch.uint8, torch.float32, torch.float64)
        assert (part.dtype == torch.uint8) == (dtype == "u1")
        assert torch.equal(part.double(), want) and part.is_contiguous()


def test_wide_integers_keep_their_digits(tmp_path):
    for dtype in ("<i4", ">u4", "<f8"):
        np.save(tmp_path / "a.npy", np.array([2**30 + 1, 5], dtype))
        rows = stored.rows(stored.headers(tmp_path / "a.npy", "t")[""], "x", "t")
        assert rows[slice(0, 1)].tolist() == [[2**30 + 1]]  # float32 has no such number


def test_tensors_of_all_kinds(tmp_path):
    x = torch.randn(5, 4)
    for value in (x.bfloat16(), x.half(), x > 0, torch.nn.Parameter(x), x.T.contiguous().T):
        torch.save(value, tmp_path / "a.pt")
        rows = stored.rows(stored.headers(tmp_path / "a.pt", "t")[""], "x", "t")
        assert torch.equal(rows[slice(None)], value.detach().float())
    torch.save([x, x[:, 0]], tmp_path / "a.pt")
    read = stored.headers(tmp_path / "a.pt", "t")
    assert stored.rows(read["1"], "1", "t").shape == (1,) and read["0"].shape == (5, 4)
    torch.save(x, tmp_path / "a.pt", _use_new_zipfile_serialization=False)  # it cannot be mapped
    assert torch.equal(stored.rows(stored.headers(tmp_path / "a.pt", "t")[""], "x", "t")[:], x)


def test_arrays_on_the_disk_are_mapped(tmp_path):
    """A sparse file of 64 GB opens at once, and few of its bytes are ever read."""
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (2**25, 1024)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + 2**36)
    rows = stored.rows(stored.headers(path, "t")[""], "x", "t")
    assert rows[torch.tensor([2**25 - 1, 0])].tolist() == [[0.0] * 1024] * 2
    assert rows.nbytes == 2**36


def test_bfloat16_of_safetensors(tmp_path):
    x = torch.randn(5, 4).bfloat16()
    save_torch({"x": x, "flag": x > 0}, tmp_path / "a.safetensors")
    read = stored.headers(tmp_path / "a.safetensors", "t")
    rows = stored.rows(read["x"], "x", "t")
    assert rows.dtype == "bfloat16" and torch.equal(rows[torch.tensor([4, 1])], x[[4, 1]].float())
    assert torch.equal(stored.rows(read["flag"], "flag", "t")[:], (x > 0).float())


def test_a_column_order_and_a_stored_archive_are_mapped(tmp_path):
    x = np.asfortranarray(X.astype(np.float32))
    np.savez(tmp_path / "a.npz", first=np.arange(3), x=x)
    rows = stored.rows(stored.headers(tmp_path / "a.npz", "t")["x"], "x", "t")
    assert isinstance(rows.values, np.memmap) and torch.equal(rows[:], torch.tensor(X).float())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def bomb(path):
    """An archive of 2 MB of zeros in two kilobytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        file = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**11, 1024)}
        np.lib.format.write_array_header_1_0(file, header)
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(file.getvalue())
            for _ in range(2**11):
                member.write(bytes(2**10))


def huge(path):
    path.write_bytes(b"\x93NUMPY\x01\x00" + (60000).to_bytes(2, "little") + b"{" + b" " * 60000)


HOSTILE = {
    "object.npy": (lambda p: np.save(p, np.array([Evil(), 1], object)), "objects.*are code"),
    "object.npz": (lambda p: np.savez(p, x=np.array([Evil()], object)), "objects.*are code"),
    "object.pt": (lambda p: torch.save({"x": Evil()}, p), "objects.*are code.*torch.save"),
    "pickle.pt": (lambda p: p.write_bytes(pickle.dumps(Evil())), "objects.*are code|damaged"),
    "array.pt": (lambda p: torch.save({"x": np.zeros(3)}, p), "objects.*are code"),
    "wide.pt": (lambda p: torch.save(torch.zeros(1).expand(10**11), p), "unpack to 400,000,000,0"),
    "header.npy": (huge, r"damaged or no \.npy"),
    "short.npy": (lambda p: p.write_bytes(b"\x93NUMPY"), r"damaged or no \.npy"),
    "text.npz": (lambda p: p.write_text("hello"), r"damaged or no \.npz"),
    "text.pt": (lambda p: p.write_text("hello"), r"objects.*are code|damaged or no \.pt"),
    "text.safetensors": (lambda p: p.write_text("hello"), r"damaged or no \.safetensors"),
    "none.npz": (lambda p: np.savez(p), "holds no arrays"),
    "word.pt": (lambda p: torch.save("hello", p), "holds a str, and data are plain tensors"),
    "nothing.pt": (lambda p: torch.save({"a": 1}, p), "holds no plain tensors"),
    "complex.npy": (lambda p: np.save(p, np.ones(3, complex)), "complex128.*two channels"),
    "texts.npy": (lambda p: np.save(p, np.array(["a", "b"])), "holds <U1, and data are real"),
    "date.npy": (lambda p: np.save(p, np.zeros(3, "M8[s]")), "holds datetime64"),
    "single.npy": (lambda p: np.save(p, 3.0), "is a single number"),
    "empty.npy": (lambda p: np.save(p, np.zeros((0, 3))), r"is empty, of shape \(0, 3\)"),
    "flat.npy": (lambda p: np.save(p, np.zeros((3, 0))), r"is empty, of shape \(3, 0\)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_useless_files(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, says = HOSTILE[name]
    write(tmp_path / name)
    with pytest.raises(FmdiffError, match=says) as error:
        read = stored.headers(tmp_path / name, f"data.file={name}")
        stored.rows(next(iter(read.values())), "x", f"data.file={name}")
    assert str(error.value).startswith(f"data.file={name}")
    assert not Path("evil").exists()


def test_a_cut_file_and_a_bomb(tmp_path, monkeypatch):
    np.save(tmp_path / "cut.npy", np.zeros((100, 3)))
    content = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-8])
    with pytest.raises(FmdiffError, match=r"is cut off: .* need 2,400 bytes, and it has 2,392"):
        stored.headers(tmp_path / "cut.npy", "t")
    bomb(tmp_path / "bomb.npz")
    monkeypatch.setattr("fmdiff.files.LARGE", 10**6)
    header = stored.headers(tmp_path / "bomb.npz", f"data.file={tmp_path / 'bomb.npz'}")["x"]
    assert header.shape == (2**11, 1024)
    with pytest.raises(FmdiffError, match="is refused: it would unpack to 2,097,280"):
        stored.rows(header, "x", "t")

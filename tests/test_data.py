"""Loading real files: digits, Parquet folders in the Hugging Face layout, everything that can be wrong with them, and the cache."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from hypergradient.lab.errors import LabError
from hypergradient.lab.runs import cache, parquet
from hypergradient.lab.runs.data import load, source
from hypergradient.lab.runs.train import evaluate

GREY = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)


def write(folder: Path, split: str, size: int = 6, labels: Any = (0, 1, 2, 1), channels: int = 1, kind: Any = None, **columns: Any) -> None:
    """A Parquet file of random images, as the Hub holds them."""
    shape = (size, size) if channels == 1 else (size, size, channels)
    pictures = np.random.default_rng(0).integers(0, 256, (4 if labels is None else len(labels), *shape), dtype=np.uint8)
    rows: dict = {"image": list(pictures), "label": labels, **columns}
    rows = {key: value for key, value in rows.items() if value is not None}
    kinds = {"image": datasets.Image(), "label": kind or datasets.Value("int64")}
    features = datasets.Features({key: kinds.get(key, datasets.Value("string")) for key in rows})
    folder.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def both(folder: Path, **options: Any) -> Path:
    for split in ("train", "test"):
        write(folder, split, **options)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/hypergradient"


def test_digits() -> None:
    for _ in range(2):  # the second time from the cache
        data = load("digits")
        assert data.train_x.shape == (1437, 1, 8, 8)
        assert data.valid_x.shape == (360, 1, 8, 8)
        assert data.train_x.mean().item() == pytest.approx(0, abs=1e-5)
        assert data.train_x.std().item() == pytest.approx(1, abs=1e-5)
        assert data.train_y.bincount(minlength=10).min() > 130
        assert data.classes == 10


@pytest.mark.parametrize(("channels", "valid"), [(1, "test"), (3, "validation")], ids=["grey-test", "colour-validation"])
def test_folder(tmp_path: Path, channels: int, valid: str) -> None:
    write(tmp_path / "d", "train", channels=channels)
    write(tmp_path / "d", valid, channels=channels, labels=[2, 0])
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 6) if channels == 1 else (4, 6, 6, 3), dtype=np.uint8)
    raw = torch.from_numpy(pictures).float().reshape(4, 6, 6, channels).permute(0, 3, 1, 2).contiguous() / 255
    expected = (raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    for _ in range(2):
        data = load(str(tmp_path / "d"))
        assert torch.equal(data.train_x, expected)
        assert data.valid_x.shape == (2, channels, 6, 6)
        assert data.valid_y.tolist() == [2, 0]
        assert data.classes == 3


def encoded(picture: Image.Image, **options: object) -> dict:
    file = io.BytesIO()
    picture.save(file, **options)  # type: ignore[arg-type]
    return {"bytes": file.getvalue(), "path": None}


def palette(**options: object) -> dict:
    """Indices 0 to 35, where index i has the colour (255 - i, i, 7)."""
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "P")
    picture.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    return encoded(picture, format="PNG", **options)


def looked_up(alpha: bool) -> np.ndarray:
    i = np.arange(36).reshape(6, 6)
    colours = [255 - i, i, np.full_like(i, 7), np.where(i == 3, 0, 255)]
    return np.stack(colours if alpha else colours[:3])


def grey(mode: str, **options: object) -> dict:
    return encoded(Image.fromarray(GREY).convert(mode), **{"format": "PNG", **options})


RGBA = np.random.default_rng(1).integers(0, 256, (6, 6, 4), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        pytest.param(lambda: palette(), looked_up(False), id="palette"),
        pytest.param(lambda: palette(transparency=3), looked_up(True), id="palette-with-transparency"),
        pytest.param(lambda: palette(transparency=bytes([255] * 3 + [0])), looked_up(True), id="palette-with-alphas"),
        pytest.param(lambda: encoded(Image.fromarray(GREY > 99), format="PNG"), (GREY > 99)[None] * 255, id="one-bit"),
        pytest.param(lambda: grey("LA"), np.stack([GREY, np.full_like(GREY, 255)]), id="grey-alpha"),
        pytest.param(lambda: encoded(Image.fromarray(RGBA), format="PNG"), RGBA.transpose(2, 0, 1), id="RGBA"),
        pytest.param(lambda: encoded(Image.fromarray(GREY), format="TIFF", exif={274: 6}), np.rot90(GREY, -1)[None], id="turned"),
    ],
)
def test_images_by_mode(tmp_path: Path, picture: Callable[[], dict], expected: np.ndarray) -> None:
    (train_x, _), *_ = source(str(both(tmp_path / "d", image=[picture()] * 4)))[1]()
    assert train_x.dtype == torch.uint8
    np.testing.assert_array_equal(train_x.numpy(), np.stack([expected] * 4))


def no_valid(d: Path) -> None:
    write(d, "train")


def other_names(d: Path) -> None:
    for split in ("north", "south"):
        write(d, split)


def negative(d: Path) -> None:
    write(d, "train")
    write(d, "test", labels=[0, -1])


def beyond(d: Path) -> None:
    write(d, "train")
    write(d, "test", labels=[0, 3])


def huge(d: Path) -> None:
    write(d, "train", labels=[0, 10**9])
    write(d, "test")


def big_label(d: Path) -> None:
    for file in both(d, labels=[0, 1], kind=datasets.Value("uint64")).iterdir():
        table = pq.read_table(file)
        pq.write_table(table.set_column(1, table.schema.field(1), pa.array([0, 2**64 - 1], pa.uint64())), file)


def sizes(d: Path) -> None:
    write(d, "train")
    write(d, "test", size=7)


def empty_split(d: Path) -> None:
    write(d, "train")
    write(d, "test", labels=[])


def corrupt(d: Path) -> None:
    file = both(d) / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-40])


def not_parquet(d: Path) -> None:
    d.mkdir()
    (d / "train.parquet").write_text("hello")


def pictures_alone(d: Path) -> None:
    (d / "train").mkdir(parents=True)
    Image.fromarray(GREY).save(d / "train/1.png")


def table_alone(d: Path) -> None:
    d.mkdir()
    (d / "train.csv").write_text("image,label\n1,2\n")


def among_tables(d: Path) -> None:
    write(d, "test")
    for name in "ab":
        (d / f"{name}-train.csv").write_text("image,label\n1,2\n")


def tables_by_card(d: Path) -> None:
    (both(d) / "train.csv").write_text("image,label\n1,2\n")
    card(d, "train.csv", "train.csv")


def card(d: Path, train: str, test: str) -> None:
    files = "".join(f"\n  - split: {split}\n    path: {path}" for split, path in (("train", train), ("test", test)))
    (d / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n")


def card_elsewhere(d: Path) -> None:
    both(d.parent / "other")
    card(both(d), "train-*", "../other/test-*")


def pipe(d: Path) -> None:
    os.mkfifo(both(d) / "more.parquet")


def loop(d: Path) -> None:
    (both(d) / "more.parquet").symlink_to("more.parquet")


def dangling(d: Path) -> None:
    (both(d) / "more.parquet").symlink_to("nothing")


def unreadable(d: Path) -> None:
    (both(d) / "more.parquet").symlink_to("/proc/self/mem")


def images(*values: object) -> Callable[[Path], object]:
    return lambda d: both(d, image=[value() if callable(value) else value for value in values], labels=list(range(len(values))))


def labels(kind: object, *values: object) -> Callable[[Path], object]:
    return lambda d: both(d, labels=list(values), kind=kind if isinstance(kind, datasets.ClassLabel) else datasets.Value(kind))


def picture(mode: str, form: str) -> Callable[[], dict]:
    return lambda: encoded(Image.new(mode, (6, 6)), format=form)


LETTERS = datasets.ClassLabel(names=["a", "b"])

ODD = {
    "no-validation-split": (no_valid, "needs a split train and one named validation or test; it has train"),
    "other-splits": (other_names, "needs a split train and one named validation or test; it has train"),
    "no-label": (lambda d: both(d, label=None, text=list("abcd")), "no integer column named label; its columns are image, text"),
    "no-image": (lambda d: both(d, image=None), "no column of images; its columns are label"),
    "negative-label": (negative, r"labels must be in 0 \.\.\. 2, but 1 are not, such as -1"),
    "label-beyond-training": (beyond, r"labels must be in 0 \.\.\. 2, but 1 are not, such as 3"),
    "huge-label": (huge, "labels must be 0, 1, .* one is 1000000000"),
    "label-of-64-bits": (big_label, "a label of the split train cannot be read"),
    "boolean-labels": (labels("bool", False, True), "no integer column named label"),
    "float-labels": (labels("float32", 0.0, 1.0), "no integer column named label"),
    "text-labels": (labels("string", "a", "b"), "no integer column named label"),
    "null-label": (labels("int64", 0, 1, None), "row 2 of the split train has no label"),
    "null-class": (labels(LETTERS, None, 1), "row 0 of the split train has no label"),
    "unknown-class": (labels(LETTERS, 0, -1), r"labels must be in 0 \.\.\. 1, but 1 are not, such as -1"),
    "one-class": (labels("int64", 0, 0), "needs at least two classes, but the highest label is 0"),
    "negative-labels": (labels("int64", -1, -1), "needs at least two classes, but the highest label is -1"),
    "sizes-differ": (sizes, "training images are 1x6x6, validation images 1x7x7"),
    "sizes-mixed": (images(GREY, GREY[:5]), r"row 1 of the split train .*its shape is \(5, 6\), that of row 0 \(6, 6\)"),
    "palette-among-grey": (images(GREY, palette), r"row 1 of the split train .*its shape is \(6, 6, 3\), that of row 0 \(6, 6\)"),
    "null-image": (images(GREY, None), "cannot read the image in row 1 of the split train .it is null"),
    "image-elsewhere": (images({"bytes": None, "path": "/etc/hostname"}, GREY), "row 0 of the split train .* stored in another file"),
    "bad-picture": (images(GREY, {"bytes": b"no picture", "path": None}), "cannot read the image in row 1 of the split train"),
    "no-bytes": (images(GREY, {"bytes": b"", "path": None}), "cannot read the image in row 1 of the split train"),
    "16-bit": (images(GREY, picture("I;16", "PNG")), "row 1 .*its mode is I;16: convert it to one of 1, L, LA, P, RGB, RGBA"),
    "32-bit": (images(picture("I", "TIFF"), GREY), "row 0 .*its mode is I:"),
    "float": (images(picture("F", "TIFF"), GREY), "row 0 .*its mode is F:"),
    "CMYK": (images(picture("CMYK", "JPEG"), GREY), "row 0 .*its mode is CMYK:"),
    "empty-split": (empty_split, "not readable as Parquet data .*test.* corresponds to no data"),
    "corrupt": (corrupt, "not readable as Parquet data"),
    "not-parquet": (not_parquet, "not readable as Parquet data"),
    "pictures-alone": (pictures_alone, r"no \*\.parquet file in it, and other formats are not supported"),
    "table-alone": (table_alone, r"no \*\.parquet file in it"),
    "among-tables": (among_tables, "not readable as Parquet data with splits train and test .*csv"),
    "tables-by-card": (tables_by_card, r"train.csv would be read too, but is not a Parquet file of the folder"),
    "card-elsewhere": (card_elsewhere, r"other/test.* would be read too, but is not a Parquet file of the folder"),
    "empty-folder": (lambda d: d.mkdir(), r"no \*\.parquet file in it"),
    "pipe": (pipe, "more.parquet is not a regular file"),
    "loop": (loop, "cannot be read .*symbolic links.*more.parquet"),
    "dangling": (dangling, "cannot be read .*No such file or directory.*more.parquet"),
    "unreadable": (unreadable, "cannot be read .*Input/output error"),
    "a-file": (lambda d: d.write_text("hello"), "is a file: give the folder"),
    "a-pipe": (os.mkfifo, "is a file: give the folder"),
    "links-in-a-circle": (lambda d: d.symlink_to(d), "cannot be opened .Too many levels of symbolic links.: give digits, a folder"),
    "missing": (lambda d: None, "no such folder; give digits, a folder"),
}


@pytest.mark.parametrize(("make", "message"), [pytest.param(*row, id=name) for name, row in ODD.items()])
def test_bad_data(tmp_path: Path, own_cache: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "d")
    refused(str(tmp_path / "d"), message)
    assert not own_cache.exists()


def refused(name: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as error:
        load(name)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("", "--data is empty: give digits, a folder", id="empty"),
        pytest.param(".", r"no \*\.parquet file in it", id="here"),
        pytest.param("..", "--data ..: more than 50 files in it", id="above"),
        pytest.param("~", "no such folder", id="home"),
        pytest.param("~/data", "no such folder", id="in-home"),
        pytest.param("../no", "no such folder", id="relative"),
        pytest.param("a/b/c", "no such folder", id="no-hub-id"),
        pytest.param("a\0b", r"--data 'a\\x00b' cannot be opened \(embedded null", id="nul"),
        pytest.param("a/b\nc", r"--data 'a/b\\nc': no such folder", id="line-feed"),
        pytest.param("\ud800", r"--data '\\ud800' cannot be opened", id="surrogate"),
        pytest.param("x" * 5000, r"--data x{100}\.\.\. cannot be opened \(File name too long\)", id="long"),
        pytest.param("x/" * 2500, "cannot be opened|no such folder", id="deep"),
        pytest.param("/dev/null/x", "cannot be opened .Not a directory", id="below-a-file"),
        pytest.param("/dev/null", "is a file: give the folder", id="device"),
        pytest.param("/proc", "more than 50 files|cannot be read", id="proc"),
    ],
)
def test_bad_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    (tmp_path / "here").mkdir()
    for i in range(50):
        (tmp_path / f"{i}").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(parquet, "MAX_ENTRIES", 50)
    refused(name, message)
    assert parquet.MAX_ENTRIES < 100


def test_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user without the right to look into it would see it: root may look everywhere."""
    (both(tmp_path / "d") / "closed").mkdir()
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    refused(str(tmp_path / "d"), "cannot be read .*Permission denied: '.*closed'")


@pytest.mark.parametrize("name", ["d[1]", "d?", "d*"])
def test_a_pattern_is_a_name(tmp_path: Path, name: str) -> None:
    """The library takes them for patterns, and reads another folder's files."""
    both(tmp_path / "d1")
    both(tmp_path / name, channels=3)
    refused(str(tmp_path / name), "d1/.* would be read too")


def test_a_folder_named_as_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both(tmp_path / "csv")
    monkeypatch.chdir(tmp_path)
    assert load("csv").classes == 3


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library gives for a Hub id is read as a folder is, images in files of its own included."""
    Image.fromarray(GREY).save(tmp_path / "1.png")
    features = datasets.Features({"image": datasets.Image(), "label": LETTERS})
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "1.png"), GREY], "label": [0, 1]}, features=features)
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    data = load("someone/something")
    assert torch.equal(data.train_x[0], data.train_x[1])
    splits["train"] = rows.select([])
    refused("someone/something", "the split None is empty")
    splits["train"] = rows
    splits["test"] = rows.rename_column("label", "other").cast_column("other", datasets.Value("int64"))
    refused("someone/something", "no integer column named label; its columns are image, other")


def changed(d: Path) -> str:
    write(d, "test", labels=[0, 2])
    return str(d)


def other_pictures(d: Path) -> str:
    return str(both(d.parent / "e", image=[GREY] * 4))


def other_type(d: Path) -> str:
    return str(both(d.parent / "e", kind=datasets.ClassLabel(names=list("abcd"))))


def copied(d: Path) -> str:
    return str(shutil.copytree(d, d.parent / "copy"))


def linked(d: Path) -> str:
    (d.parent / "link").symlink_to(d)
    return str(d.parent / "link")


def renamed(d: Path) -> str:
    for file in d.iterdir():
        file.rename(d / file.name.replace("-00000-of-00001", ""))
    return str(d)


def swapped(d: Path) -> str:
    """With the times of the files as before."""
    train, test = (both(d.parent / str(i), labels=[0, 1, 2, i]) for i in (1, 2))
    for file in d.iterdir():
        before = file.stat()
        shutil.copy((test if "train" in file.name else train) / file.name, file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return str(d)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        pytest.param(lambda d: "d", True, id="relative"),
        pytest.param(lambda d: f"../{d.parent.name}/./d/", True, id="roundabout"),
        pytest.param(linked, True, id="symlink"),
        pytest.param(copied, True, id="copy"),
        pytest.param(renamed, True, id="files-renamed"),
        pytest.param(changed, False, id="labels-changed"),
        pytest.param(other_pictures, False, id="images-changed"),
        pytest.param(other_type, False, id="classes-changed"),
        pytest.param(swapped, False, id="changed-at-the-same-time"),
    ],
)
def test_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Callable[[Path], str], same: bool) -> None:
    monkeypatch.chdir(tmp_path)
    first = load(str(both(tmp_path / "d"))).digest
    assert len(first) == 64
    assert load("d").digest == first
    assert (load(other(tmp_path / "d")).digest == first) is same


def test_digests_of_what_needs_no_file() -> None:
    names = ["digits", "text", "quadratic", "regression"]
    first = [load(name).digest for name in names]
    assert len(set(first)) == 4
    assert [load(name).digest for name in names] == first
    assert load("digits", "meta").digest == first[0]


def test_a_hit_imports_no_decoder(tmp_path: Path) -> None:
    first = load("digits").digest + load(str(both(tmp_path / "d"))).digest
    lines = ["import sys", "from hypergradient.lab.runs.data import load", "print(load('digits').digest + load('d').digest)"]
    lines += ["print([name for name in ('datasets', 'sklearn', 'PIL', 'pyarrow') if name in sys.modules])"]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [first, "[]"]


def flipped(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    at = whole.find(GREY.tobytes())
    whole[at] ^= 1
    file.write_bytes(whole)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def other_content(file: Path) -> None:
    found = torch.load(file)
    found["tensors"]["std"] *= 2
    torch.save(found, file)


def other_thing(file: Path) -> None:
    torch.save([1, 2], file)


def code(file: Path) -> None:
    torch.save({"tensors": {}, "digests": {}, "code": os.system}, file)


@pytest.mark.parametrize("harm", [flipped, as_folder, other_content, other_thing, code, lambda file: os.truncate(file, 1000), Path.unlink])
def test_a_damaged_cache_is_remade(tmp_path: Path, own_cache: Path, harm: Callable[[Path], object]) -> None:
    both(tmp_path / "d", image=[GREY] * 2 + [GREY.T] * 2)
    first = load(str(tmp_path / "d"))
    (file,) = own_cache.iterdir()
    whole = file.read_bytes()
    harm(file)
    again = load(str(tmp_path / "d"))
    assert again.digest == first.digest
    assert torch.equal(again.train_x, first.train_x)
    assert [*own_cache.iterdir()] == [file]
    assert harm is as_folder or file.read_bytes() == whole


@pytest.mark.parametrize("place", ["/proc", "/dev/null", "file"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    both(tmp_path / "d")
    assert load(str(tmp_path / "d")).digest == load(str(tmp_path / "d")).digest


def test_a_full_disk(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(what: object, side: io.BytesIO) -> None:
        side.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.torch, "save", full)
    assert load(str(both(tmp_path / "d"))).classes == 3
    assert not [*own_cache.iterdir()]


def test_a_planted_side_file_is_left_alone(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("mine")
    own_cache.mkdir(parents=True)
    (own_cache / "tmpguess").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: iter(["guess", "other"]))
    cache.cached("key", lambda: {"x": torch.ones(2)})
    assert cache.cached("key", dict)[0]["x"].tolist() == [1, 1]
    assert (tmp_path / "precious").read_text() == "mine"
    assert len([*own_cache.iterdir()]) == 2


def test_made_data() -> None:
    text, quadratic, regression = (load(name) for name in ("text", "quadratic", "regression"))
    assert torch.equal(text.train_x[:, 1:], text.train_y[:, :-1])
    assert torch.equal(text.train_x[1:, 0], text.train_y[:-1, -1])
    assert int(text.train_x.max()) < text.classes
    w = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    hessian = quadratic.train_x.T @ quadratic.train_x / 100
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian).flip(0)[:50], torch.logspace(0, -4, 100)[:50], rtol=1e-3, atol=1e-6)
    loss = evaluate(linear_of(w), quadratic.train_x, quadratic.train_y)
    assert loss == (pytest.approx(float(w.T @ hessian @ w / 2), rel=1e-5), None)
    best = torch.linalg.lstsq(regression.train_x, regression.train_y).solution
    assert evaluate(linear_of(best), regression.valid_x, regression.valid_y)[0] == pytest.approx(0.5, abs=0.03)


def linear_of(w: torch.Tensor) -> nn.Module:
    layer = nn.Linear(len(w), 1, bias=False)
    layer.weight.data.copy_(w.T)
    return layer

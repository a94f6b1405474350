"""Data of every kind, from small files made here."""

from __future__ import annotations

import gzip
import struct
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaefast import data
from vaefast.data import Batches, DataError, Rows, Split, Sprites


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def both(split: Split) -> torch.Tensor:
    """All samples, those to train on first."""
    return torch.cat([split.train[:], split.test[:]])


def as_set(samples: torch.Tensor) -> set[bytes]:
    return {sample.contiguous().numpy().tobytes() for sample in samples}


# rows that are made when they are asked for


def counting(count: int = 10, **options) -> tuple[Rows, list[int]]:
    made: list[int] = []

    def make(rows):
        made.extend(rows.tolist())
        return rows[:, None].expand(-1, 2) * 1.0

    return Rows(make, count, (2,), torch.float32, **options), made


def test_rows_are_indexed_like_a_tensor():
    rows, _ = counting()
    whole = torch.arange(10.0)[:, None].expand(-1, 2)
    assert len(rows) == 10
    assert rows.shape == whole.shape
    for index in (torch.tensor([7, 0, 7]), slice(None), slice(1, 8, 3), 4, -1, torch.tensor([], dtype=torch.int64)):
        assert torch.equal(rows[index], whole[index])
    assert torch.equal(rows.take(torch.tensor([9, 2, 4]))[torch.tensor([2, 0])], whole[[4, 9]])
    with pytest.raises(IndexError):
        rows[10]


def test_rows_that_are_kept_are_made_once():
    rows, made = counting(keep=True)
    for _ in range(3):
        assert torch.equal(rows[torch.tensor([3, 1])], torch.tensor([[3.0, 3.0], [1.0, 1.0]]))
    assert torch.equal(rows.take(torch.tensor([1, 2]))[:], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert made == [3, 1, 2]


def test_batches_of_rows_are_those_of_the_tensor():
    rows, _ = counting(23)
    for shuffle in (False, True):
        found = []
        for source in (rows, rows[:]):
            torch.manual_seed(0)
            found.append(list(Batches(source, 4, shuffle=shuffle)))
        assert [len(batch) for batch in found[0]] == [4, 4, 4, 4, 4, 3]
        for ours, expected in zip(*found, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("lazy", [False, True])
def test_batches_start_anywhere(lazy):
    rows, _ = counting(23)
    batches = Batches(rows if lazy else rows[:], 4, shuffle=True)
    torch.manual_seed(0)
    whole = list(batches)
    for start in (1, 5, 6):
        torch.manual_seed(0)
        rest = list(batches.start_at(start))
        assert len(rest) == 6 - start
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_rows_are_made_in_the_background_and_not_far_ahead():
    threads, made = set(), []

    def make(rows):
        threads.add(threading.current_thread().name)
        made.append(rows)
        return rows

    iterator = iter(Batches(Rows(make, 100, (), torch.int64), 1))
    assert next(iterator).tolist() == [0]
    del iterator  # a pass that is broken off leaves no thread behind
    assert len(made) <= 3
    assert threading.current_thread().name not in threads
    assert not any(thread.name in threads for thread in threading.enumerate())


def test_what_goes_wrong_in_the_background_is_raised():
    def make(rows):
        raise DataError("image 7 is broken")

    with pytest.raises(DataError, match="image 7 is broken"):
        list(Batches(Rows(make, 3, ()), 1))


# splits


def test_held_out_samples_are_never_trained_on(tmp_path):
    np.save(tmp_path / "a.npy", levels(50, 4, 4))
    first, second = (data.load(str(tmp_path / "a.npy"), held_out=0.2) for _ in range(2))
    assert first.train.shape == (40, 1, 4, 4)
    assert first.test.shape == (10, 1, 4, 4)
    assert as_set(both(first)) == as_set(torch.from_numpy(levels(50, 4, 4)))
    assert torch.equal(first.train, second.train)
    few = data.load(str(tmp_path / "a.npy"), held_out=0.2, limit=20)
    assert (len(few.train), len(few.test)) == (20, 5)
    assert as_set(few.train) < as_set(first.train)
    assert as_set(few.test) < as_set(first.test)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nowhere/at/all", {}, "there is no data 'nowhere/at/all': no such file or folder, and not digits"),
        ("digits", {"size": 3}, "data 'digits': unknown option size; there are every, held_out, limit"),
        ("digits", {"limit": 0}, "limit must be at least 1, got 0"),
        ("{npy}", {"held_out": 0.0}, "held_out must leave samples on both sides, got 0.0 of 5 samples"),
        ("{npy}", {"held_out": 1.0}, "held_out must leave samples on both sides"),
        ("{npz}", {"colour": 1}, "unknown option colour; there are key, held_out, limit"),
        ("{npz}", {}, "holds a, b: say which with key"),
        ("{npz}", {"key": "c"}, "holds a, b: say which with key"),
        ("{text}", {}, "is not an idx file: it begins with 68 65 6c 6c"),
        ("{damaged.npy}", {}, "cannot read .*damaged.npy"),
        ("{damaged.npz}", {}, "cannot read .*damaged.npz"),
        ("{flat}", {}, r"must hold an array \[N, ...\], one sample per row, got shape \(5,\)"),
        ("{words}", {}, "must hold numbers, got <U1"),
        ("{complex}", {}, "must hold numbers, got complex128"),
        ("{nothing}", {}, "nothing.npz holds no array"),
        ("{unlike}", {}, r"unlike.npz: .* to train on have the shape \(3,\), and those held out \(4,\)"),
        ("{unlabelled}", {}, "unlabelled.npz: there are 4 labels of 5 samples to train on"),
        ("{no_test}", {}, "no_test.npz has no samples held out"),
        ("{labels}", {}, r"labels must hold an array \[N, ...\], one sample per row, got shape \(5,\)"),
        ("{empty}", {}, "holds no image"),
    ],
)
def test_what_cannot_be_loaded_is_named(spec, options, message, tmp_path):
    np.save(tmp_path / "npy.npy", levels(5, 3))
    np.save(tmp_path / "flat.npy", levels(5))
    np.save(tmp_path / "words.npy", np.array([["a"], ["b"]]))
    np.savez(tmp_path / "npz.npz", a=levels(5, 3), b=levels(5, 3))
    np.save(tmp_path / "complex.npy", np.ones((5, 3)) * 1j)
    np.savez(tmp_path / "nothing.npz")
    np.savez(tmp_path / "unlike.npz", x_train=levels(5, 3), x_test=levels(5, 4))
    np.savez(tmp_path / "unlabelled.npz", x_train=levels(5, 3), x_test=levels(5, 3), y_train=levels(4))
    np.savez(tmp_path / "no_test.npz", x_train=levels(5, 3), x_test=levels(0, 3))
    (tmp_path / "labels").write_bytes(idx(levels(5)))
    (tmp_path / "text").write_text("hello, world")
    for name in ("npy", "npz"):
        (tmp_path / f"damaged.{name}").write_bytes((tmp_path / f"{name}.{name}").read_bytes()[:-20])
    (tmp_path / "empty").mkdir()
    if spec.startswith("{"):
        name = spec[1:-1]
        spec = str(next(p for p in tmp_path.iterdir() if name in (p.name, p.stem)))
    with pytest.raises(DataError, match=message):
        data.load(spec, **options)


# sprites


def test_sprites_have_the_grid_of_dsprites():
    sprites = Sprites()
    assert sprites.shape == (737_280, 1, 64, 64)
    rows = torch.tensor([0, 1, 32, 32 * 32, 32 * 32 * 40, 32 * 32 * 40 * 6, 737_279])
    assert sprites.factors(rows).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [2, 5, 39, 31, 31],
    ]
    assert set(sprites[rows].unique().tolist()) == {0, 255}


def moments(image: torch.Tensor) -> tuple[float, float, float]:
    """Area, and the centre's row and column."""
    inside = (image[0] > 0).double()
    index = torch.arange(64).double()
    area = inside.sum()
    return area.item(), ((inside.sum(1) * index).sum() / area).item(), ((inside.sum(0) * index).sum() / area).item()


def test_each_factor_of_a_sprite_does_what_its_name_says():
    sprites = Sprites()

    def draw(shape=0, scale=5, orientation=0, x=16, y=16):
        return sprites[(((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y]

    assert moments(draw(scale=5))[0] / moments(draw(scale=0))[0] == pytest.approx(4, rel=0.15)
    for shape in range(3):
        areas = [moments(draw(shape, orientation=o))[0] for o in range(40)]
        assert max(areas) < 1.1 * min(areas)  # turned, and not cut
        outermost = [draw(shape, 5, o, x, y) for o in range(0, 40, 3) for x in (0, 31) for y in (0, 31)]
        for image in outermost:
            assert image[0, 0].max() == image[0, -1].max() == image[0, :, 0].max() == image[0, :, -1].max() == 0
    _, row, column = moments(draw(x=20, y=10))
    assert (row, column) == pytest.approx((15.5 + 10 * 32 / 31, 15.5 + 20 * 32 / 31), abs=0.51)
    assert torch.equal(draw(0, orientation=3), draw(0, orientation=13))  # a square, after a quarter of a turn
    assert torch.equal(draw(1, orientation=3), draw(1, orientation=23))
    assert not torch.equal(draw(2, orientation=3), draw(2, orientation=23))


def test_sprites_split_with_their_factors():
    split = data.load("sprites", limit=300)
    assert (len(split.train), len(split.test)) == (300, 33)
    assert split.train_labels.shape == (300, 5)
    first = split.train_labels[17]
    row = (first * torch.tensor([6 * 40 * 1024, 40 * 1024, 1024, 32, 1])).sum()
    assert torch.equal(split.train[17], Sprites()[row.item()])


# images


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_of_images_and_its_classes(tmp_path):
    grey = {f"{kind}/{i}.png": levels(6, 5, seed=i + 10 * len(kind)) for kind in ("cat", "horse") for i in range(10)}
    for name, pixels in grey.items():
        save(tmp_path / name, pixels)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    split = data.load(str(tmp_path))
    assert split.train.shape == (18, 1, 6, 5)
    assert split.train.dtype == torch.uint8
    found = {
        sample.numpy().tobytes(): kind.item()
        for sample, kind in zip(both(split), torch.cat([*split[1::2]]), strict=True)
    }
    assert found == {pixels.tobytes(): int(name.startswith("horse")) for name, pixels in grey.items()}


def test_images_are_brought_to_one_size_and_kind(tmp_path):
    colour = levels(8, 16, 3)
    save(tmp_path / "a.png", colour)
    save(tmp_path / "deep" / "er" / "b.JPG", levels(20, 10))
    save(tmp_path / "c.png", np.full((4, 4), 256 * 200, np.uint16))
    for options, shape in (
        ({"size": 8, "channels": 3}, (3, 8, 8)),
        ({"size": 8, "channels": 1}, (1, 8, 8)),
        ({"size": 4, "channels": 3, "crop": False}, (3, 4, 4)),
    ):
        split = data.load(str(tmp_path), held_out=0.34, **options)
        assert split.train_labels is None
        assert both(split).shape == (3, *shape)
    cropped = data.images.decoded(lambda i: Image.fromarray(colour), ["a"], size=8)[0]
    assert torch.equal(cropped, torch.from_numpy(colour[:, 4:12]).movedim(2, 0))
    stretched = data.images.decoded(lambda i: Image.fromarray(colour), ["a"], size=8, crop=False)[0]
    assert not torch.equal(stretched, cropped)
    sixteen = data.images.decoded(lambda i: Image.open(tmp_path / "c.png"), ["c"], channels=1)[0]
    assert sixteen.unique().tolist() == [200]


def test_images_are_resized_as_what_they_show():
    """Pillow takes the nearest neighbour of palette and two-level images, whatever it is asked for."""
    stripes = np.tile(np.array([0, 255], np.uint8), (16, 8))
    smooth = data.images.decoded(lambda i: Image.fromarray(stripes), ["a"], size=8)[0].int()
    for mode in ("1", "P", "LA"):
        found = data.images.decoded(lambda i, m=mode: Image.fromarray(stripes).convert(m), ["a"], size=8, channels=1)
        assert (found[0].int() - smooth).abs().max() <= 1, mode


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3)])
def test_channels_are_those_of_the_first_image(mode, channels):
    assert data.images.decoded(lambda i: Image.new(mode, (4, 4)), ["a"]).shape == (1, channels, 4, 4)


def test_a_broken_image_is_named(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", levels(8, 8, seed=i))
    whole = (tmp_path / "4.png").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", b""):
        (tmp_path / "4.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read the image .*4\.png: "):
            both(data.load(str(tmp_path)))
    save(tmp_path / "4.png", levels(8, 9))
    with pytest.raises(DataError, match=r"4\.png has 9x8 pixels, and others 8x8: give a size"):
        both(data.load(str(tmp_path)))
    with pytest.raises(DataError, match="channels must be 1"):
        data.load(str(tmp_path), channels=2)


# idx


def idx(array: np.ndarray) -> bytes:
    kind = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_the_files_of_mnist(compressed, tmp_path):
    arrays = {
        "train-images-idx3-ubyte": levels(20, 28, 28),
        "train-labels-idx1-ubyte": levels(20) % 10,
        "t10k-images-idx3-ubyte": levels(5, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": levels(5) % 10,
    }
    for name, array in arrays.items():
        content = idx(array)
        (tmp_path / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    split = data.load(str(tmp_path))
    for found, array in zip(split, arrays.values(), strict=True):
        assert torch.equal(found.flatten(), torch.from_numpy(array).flatten().to(found.dtype))
    assert split.train.shape == (20, 1, 28, 28)
    assert split.train_labels.dtype == torch.int64
    (one,) = tmp_path.glob("train-images*")
    assert data.load(str(one)).train.shape == (18, 1, 28, 28)
    one.write_bytes(one.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\S* is damaged"):
        data.load(str(tmp_path))
    one.unlink()
    with pytest.raises(DataError, match=r"has idx files, but no train-images\*"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_of_every_type(kind, tmp_path):
    array = (np.arange(24).reshape(2, 3, 4) - 3 * (kind != "u1")).astype(kind)
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(data.idx.read(tmp_path / "a").numpy(), array)
    loaded = both(data.load(str(tmp_path / "a"), held_out=0.5))
    assert loaded.dtype == (torch.uint8 if kind == "u1" else torch.float32)  # what models take, as of .npy
    assert sorted(loaded[:, 0, 0, 0].tolist()) == array[:, 0, 0].tolist()


# arrays


def test_arrays_of_images_and_of_numbers(tmp_path):
    for shape, expected in (
        ((9, 4, 5), (1, 4, 5)),
        ((9, 4, 5, 3), (3, 4, 5)),
        ((9, 3, 4, 5), (3, 4, 5)),
        ((9, 7), (7,)),
    ):
        np.save(tmp_path / "a.npy", levels(*shape))
        split = data.load(str(tmp_path / "a.npy"), held_out=0.34)
        assert split.train.shape == (6, *expected)
        assert split.train.dtype == torch.uint8
    np.save(tmp_path / "a.npy", np.arange(18.0).reshape(9, 2))
    split = data.load(str(tmp_path / "a.npy"), held_out=0.34)
    assert sorted(both(split)[:, 0].tolist()) == list(range(0, 18, 2))
    assert split.train.dtype == torch.float32
    np.savez(tmp_path / "a.npz", x_train=levels(4, 3, 3), y_train=levels(4, 1), x_test=levels(2, 3, 3))
    split = data.load(str(tmp_path / "a.npz"))
    assert split.train.shape == (4, 1, 3, 3)
    assert split.train_labels.tolist() == levels(4, 1)[:, 0].tolist()
    assert split.test_labels is None
    assert data.load(str(tmp_path / "a.npz"), key="x_train", held_out=0.25).train.shape == (3, 1, 3, 3)


def test_sparse_counts_become_dense_row_by_row(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    counts = levels(20, 7) // 200
    sparse.save_npz(tmp_path / "counts.npz", sparse.csr_matrix(counts))
    split = data.load(str(tmp_path / "counts.npz"))
    assert isinstance(split.train, Rows)
    assert split.train.dtype == torch.float32
    assert as_set(both(split)) == as_set(torch.from_numpy(counts.astype(np.float32)))


def test_counts_of_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    import pandas as pd

    sparse = pytest.importorskip("scipy.sparse")
    counts = levels(12, 4).astype(np.float32)
    names = pd.Index([str(i) for i in range(12)], dtype=object)  # pandas' new strings are not written by default
    kinds = pd.DataFrame({"kind": pd.Categorical(["b", "a", "b"] * 4)}, index=names)
    variables = pd.DataFrame(index=pd.Index(list("wxyz"), dtype=object))
    cells = anndata.AnnData(sparse.csr_matrix(counts), obs=kinds, var=variables, layers={"double": 2 * counts})
    cells.write_h5ad(tmp_path / "cells.h5ad")
    path = str(tmp_path / "cells.h5ad")
    split = data.load(path, labels="kind")
    assert as_set(both(split)) == as_set(torch.from_numpy(counts))
    assert torch.cat(split[1::2]).bincount().tolist() == [4, 8]
    assert as_set(both(data.load(path, layer="double"))) == as_set(torch.from_numpy(2 * counts))
    with pytest.raises(DataError, match="has no layer 'triple'; there are double"):
        data.load(path, layer="triple")
    with pytest.raises(DataError, match="has no column of obs 'age'; there are kind"):
        data.load(path, labels="age")


@pytest.mark.parametrize(
    ("spec", "package"), [("x.h5ad", "anndata"), ("torchvision:MNIST", "torchvision"), ("hf:mnist", "datasets")]
)
def test_a_package_that_is_missing_is_named(spec, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.h5ad").write_bytes(b"")
    with pytest.raises(DataError, match=f"needs the package {package}: pip install {package}"):
        data.load(spec)


# data sets by name, of stand-ins for the packages


class Pictures:
    """Like a data set of torchvision."""

    def __init__(self, root, train=True, download=False):
        if not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.images = levels(6 if train else 3, 8, 8, 3, seed=train)
        self.targets = list(range(len(self.images)))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), self.targets[i]


def test_torchvision_by_name(monkeypatch):
    package = types.SimpleNamespace(datasets=types.SimpleNamespace(Pictures=Pictures))
    monkeypatch.setitem(sys.modules, "torchvision", package)
    split = data.load("torchvision:Pictures", download=True)
    assert torch.equal(split.train[:], torch.from_numpy(levels(6, 8, 8, 3, seed=1)).movedim(3, 1))
    assert torch.equal(split.test[:], torch.from_numpy(levels(3, 8, 8, 3, seed=0)).movedim(3, 1))
    assert split.test_labels.tolist() == [0, 1, 2]
    assert data.load("torchvision:Pictures", download=True, size=4, channels=1).train.shape == (6, 1, 4, 4)
    with pytest.raises(DataError, match=r"torchvision:Pictures in 'data': Dataset not found.*download=true"):
        data.load("torchvision:Pictures")
    with pytest.raises(DataError, match="torchvision has no data set 'Paintings'"):
        data.load("torchvision:Paintings")
    with pytest.raises(DataError, match="unknown option colour; there are root, download, size, crop, channels, held"):
        data.load("torchvision:Pictures", colour=1)


def test_hugging_face_by_name(monkeypatch):
    class Kind:
        pass

    class Part:
        def __init__(self, count, seed):
            self.images = levels(count, 8, 8, seed=seed)
            self.features = {"label": None, "picture": Kind()}

        def __len__(self):
            return len(self.images)

        def __getitem__(self, key):
            if key == "label":
                return list(range(len(self)))
            return {"picture": Image.fromarray(self.images[key])}

    parts = {"train": Part(10, 0), "validation": Part(4, 1)}

    def load_dataset(name, config):
        if name != "pictures":
            raise FileNotFoundError(f"no {name} on the hub")
        return {side: part for side, part in parts.items() if config != "one part" or side == "train"}

    package = types.SimpleNamespace(Image=Kind, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", package)
    split = data.load("hf:pictures")
    assert torch.equal(split.train[:], torch.from_numpy(parts["train"].images)[:, None])
    assert torch.equal(split.test[:], torch.from_numpy(parts["validation"].images)[:, None])
    assert split.train_labels.tolist() == list(range(10))
    assert len(data.load("hf:pictures", config="one part", held_out=0.3).test) == 3
    with pytest.raises(
        DataError, match="hf:pictures has no images in a column 'label'; its columns are label, picture"
    ):
        data.load("hf:pictures", image="label")
    with pytest.raises(DataError, match="hf:paintings: no paintings on the hub"):
        data.load("hf:paintings")

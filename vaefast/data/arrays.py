"""Arrays in .npy and .npz files, and count matrices in .npz (scipy.sparse) and .h5ad (anndata) files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vaefast.data.rows import Rows
from vaefast.data.split import DataError, Split


def npy(path: Path) -> torch.Tensor:
    try:
        return _tensor(np.load(path, allow_pickle=False), path)
    except (EOFError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def npz(path: Path, *, key: str | None = None) -> torch.Tensor | Rows | Split:
    """One array of the file: the one named `key`, or the only one; x_train and x_test (with y_…) make a Split.

    A matrix of scipy.sparse.save_npz becomes dense row by row.

    Raises:
        DataError: for a damaged file, or one in which it is not clear what is meant.
    """
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            if key is None and {"format", "shape", "data"} <= set(names):
                return _sparse(path)
            if key is None and {"x_train", "x_test"} <= set(names):
                labels = [_labels(file[n]) if n in names else None for n in ("y_train", "y_test")]
                train, test = (_tensor(file[n], path) for n in ("x_train", "x_test"))
                return Split(train, labels[0], test, labels[1])
            if not names:
                raise DataError(f"{path} holds no array")
            if len(names) > 1 if key is None else key not in names:
                raise DataError(f"{path} holds {', '.join(names)}: say which with key=…")
            return _tensor(file[names[0] if key is None else key], path)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from None


def _labels(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(len(array)).astype(np.int64))


def _sparse(path: Path) -> Rows:
    try:
        from scipy import sparse
    except ImportError:
        raise DataError(f"{path} is a sparse matrix, which needs scipy: pip install scipy") from None
    return matrix(sparse.load_npz(path))


def h5ad(path: Path, *, layer: str | None = None, labels: str | None = None) -> tuple[Rows, torch.Tensor | None]:
    """The counts of an AnnData file, cells by genes, float32.

    Args:
        layer: the one to take instead of X.
        labels: the column of obs that names each cell's class.

    Raises:
        DataError: without anndata, for a damaged file, or a layer or column that is not in it.
    """
    try:
        import anndata
    except ImportError:
        raise DataError(f"{path} needs the package anndata: pip install anndata") from None
    try:
        found = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for what, name, names in (("layer", layer, found.layers.keys()), ("column of obs", labels, found.obs.keys())):
        if name is not None and name not in names:
            raise DataError(f"{path} has no {what} {name!r}; there are {', '.join(map(str, names)) or 'none'}")
    kinds = None
    if labels is not None:
        kinds = torch.from_numpy(np.unique(found.obs[labels].astype(str), return_inverse=True)[1].astype(np.int64))
    return matrix(found.X if layer is None else found.layers[layer]), kinds


def matrix(counts) -> Rows:
    """Rows of a matrix [N, D], scipy's or numpy's, as float32."""
    counts = counts.tocsr() if hasattr(counts, "tocsr") else np.asarray(counts)

    def make(rows: torch.Tensor) -> torch.Tensor:
        chosen = counts[rows.numpy()]
        dense = chosen.toarray() if hasattr(chosen, "toarray") else chosen
        return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))

    return Rows(make, counts.shape[0], counts.shape[1:], torch.float32)


def _tensor(array: np.ndarray, path: Path) -> torch.Tensor:
    """Images stay uint8 and get their channels first; everything else becomes float32."""
    if array.ndim < 2:
        raise DataError(f"{path} must hold an array [N, ...], one sample per row, got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} must hold numbers, got {array.dtype}")
    if array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.float32))
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))

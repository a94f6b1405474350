"""Data sets, kept as they are stored (images in uint8), and batches of them."""

from vaefast.data.batches import Batches
from vaefast.data.digits import digits
from vaefast.data.rows import Rows, spread
from vaefast.data.sources import load
from vaefast.data.split import DataError, Split
from vaefast.data.sprites import Sprites

__all__ = ["Batches", "DataError", "Rows", "Split", "Sprites", "digits", "load", "spread"]

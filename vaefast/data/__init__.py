"""Data sets, kept as they are stored (images in uint8), and batches of them."""

from vaefast.data.batches import Batches
from vaefast.data.digits import Split, digits

__all__ = ["Batches", "Split", "digits"]

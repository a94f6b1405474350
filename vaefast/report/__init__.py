"""A run as one page: what `vaefast report` writes."""

from vaefast.report.page import page

__all__ = ["page"]

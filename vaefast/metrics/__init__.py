"""How good samples are."""

from vaefast.metrics.information import Information, aggregate_log_prob, information, mig

__all__ = ["Information", "aggregate_log_prob", "information", "mig"]

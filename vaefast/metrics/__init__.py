"""How good samples are: blurred, repeated, inconsistent with the data? And what does the model know?

`evaluate` takes every measure of a model, `compare` those of a set of images, `table` prints either. The functions by
themselves take features, which `extract` makes of images with the network of one's choice; each says its formula,
source, range and direction, and in a sentence what it is blind to.
"""

from vaefast.metrics.collapse import Posteriors, active_units, dimension_kl, mutual_information, posteriors
from vaefast.metrics.disentanglement import DCI, dci, sap
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.evaluate import ROWS, compare, draw, evaluate, table
from vaefast.metrics.features import Inception, Lite0, extract, reference_features
from vaefast.metrics.frechet import frechet_distance, kernel_distance
from vaefast.metrics.images import Folder, as_images
from vaefast.metrics.information import Information, aggregate_log_prob, information, mig
from vaefast.metrics.likelihood import bits_per_dimension, importance_nll
from vaefast.metrics.lpips import LPIPS, lpips_diversity
from vaefast.metrics.manifold import coverage, density, prdc, precision, recall
from vaefast.metrics.memorisation import authenticity
from vaefast.metrics.reference import Reference
from vaefast.metrics.repetition import duplicate_rate, vendi_score
from vaefast.metrics.sharpness import laplacian_variance, sharpness_ratio

__all__ = [
    "DCI",
    "LPIPS",
    "ROWS",
    "Estimate",
    "Folder",
    "Inception",
    "Information",
    "Lite0",
    "Posteriors",
    "Reference",
    "active_units",
    "aggregate_log_prob",
    "as_images",
    "authenticity",
    "bits_per_dimension",
    "compare",
    "coverage",
    "dci",
    "density",
    "dimension_kl",
    "draw",
    "duplicate_rate",
    "evaluate",
    "extract",
    "frechet_distance",
    "importance_nll",
    "information",
    "kernel_distance",
    "laplacian_variance",
    "lpips_diversity",
    "mig",
    "mutual_information",
    "posteriors",
    "prdc",
    "precision",
    "recall",
    "reference_features",
    "sap",
    "sharpness_ratio",
    "table",
    "vendi_score",
]

"""Named settings: `Settings(recipe="best")` begins from them, and what else is given wins."""

from __future__ import annotations

RECIPES: dict[str, dict] = {
    "default": {},
    "best": {
        "output": "runs/best",
        "model": "residual",
        "likelihood": "optimal_sigma",
        "latent": 16,
        "objective": "vaegan",
        "objective_options": "reconstruction=likelihood width=16",
        "epochs": 25,
    },
}

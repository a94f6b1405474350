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
        "objective_options": "reconstruction=likelihood width=16 gan_weight=1.5",
        "sampler": "gmm",
        "sampler_options": "components=20 on=sample temperature=1.1",
        "epochs": 25,
        "lr": 3e-3,
        "critic_lr": 2e-3,
        "ema": 0.998,
    },
}

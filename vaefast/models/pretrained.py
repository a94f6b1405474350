"""Model folders in the Hugging Face layout: config.json, model.safetensors, README.md. Nothing in them is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vaefast import checkpoint

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class Pretrained:
    """Gives a module with `config`, from which `models.create(**config)` builds its like, a folder to live in."""

    config: dict[str, Any]

    def save_pretrained(self, folder: str | os.PathLike, description: str = "") -> None:
        """Write config.json, model.safetensors and README.md, each in one step, to `folder`, made if it is not there.

        Args:
            description: what a reader of the model card should know first: data, purpose, licence.

        To share it on the Hugging Face Hub: `huggingface_hub.upload_folder(repo_id=..., folder_path=folder)`.

        Raises:
            ValueError: for a model that was not made by `models.create`, so that nothing says how to build it, or with
                an option that JSON cannot hold.
            OSError: if a file cannot be written.
        """
        import vaefast

        config = getattr(self, "config", None)
        if config is None:
            raise ValueError(f"this {type(self).__name__} has no config; only a model of models.create can be saved so")
        try:
            card = _card(config, sum(p.numel() for p in self.parameters()), description)
        except TypeError as error:
            raise ValueError(f"config holds what JSON cannot: {error}") from None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / WEIGHTS, self, {"format": "pt"})
        checkpoint.write_json(folder / CONFIG, {"model": config, "vaefast_version": vaefast.__version__})
        checkpoint.write(folder / CARD, card.encode())

    @staticmethod
    def from_pretrained(folder: str | os.PathLike):
        """The model that `save_pretrained` wrote to `folder`, on the CPU, in `eval()` mode.

        Raises:
            FileNotFoundError: if the folder, its config.json or its model.safetensors is not there.
            ValueError: if a file is damaged, names a model that does not exist, or the weights are not this model's.
        """
        from vaefast import models

        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder}; huggingface_hub.snapshot_download fetches one from the Hub"
            )
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} has no {name}: it is not a folder that save_pretrained wrote")
        config = _config(folder / CONFIG)
        tensors, _ = checkpoint.read(folder / WEIGHTS)
        try:
            model = models.create(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG} describes no model: {error}") from None
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            first = " ".join(str(error).split())
            raise ValueError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {first}") from None
        return model.eval()


def _config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text())["model"]
        if not isinstance(config["name"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path} is damaged, or no configuration: it has no "model" with a "name"') from None
    return config


def _card(config: dict, parameters: int, description: str) -> str:
    """The model card: YAML for the Hub, then text for people."""
    return f"""---
library_name: vaefast
tags:
- vae
- variational-autoencoder
- pytorch
---

# A {config["name"]} variational autoencoder

{description or "No description was given."}

{parameters:,} parameters, made by `vaefast.models.create`:

```json
{json.dumps(config, indent=2)}
```

## Use

```python
from vaefast.models import VAE

model = VAE.from_pretrained("FOLDER")  # where this file lies
images = model.sample(16, seed=0)
```

`model.encode(x)`, `model.decode(z)` and `model.reconstruct(x)` are there too. The weights are safetensors: nothing in
this folder is executed.
"""

"""The demo: scikit-learn's scanned digits written as a folder of PNGs, and a complete run over five tiny backbones."""

from __future__ import annotations

import shutil
from pathlib import Path

from fitwithin.api import run as run_api
from fitwithin.engine.launch import Server
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.pipeline.context import Reporter
from fitwithin.pipeline.result import Result

#: Tiny timm models that train at 900 to 1700 images/s on two cores.
MODELS = ("test_efficientnet", "test_mambaout", "test_byobnet", "test_resnet", "mobilenetv3_small_050")

MEMORY, TIME = "1GiB", "75s"

#: The scans are 8 x 8; enlarged so that the backbones' strides leave something of them.
ENLARGE = 4


def write_digits(folder: Path) -> None:
    """Write the 1,797 digits as ``folder/<digit>/<number>.png``.

    Raises:
        UsageError: scikit-learn, which ships them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the demo's digits come with scikit-learn; install it with: pip install 'fitwithin[demo]'"
        ) from error
    from PIL import Image

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype("uint8"))
        image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.Resampling.BICUBIC).save(path)


def run(out: Path, *, reporter: Reporter, started_at: float, server: Server | None = None) -> Result:
    """Write the digits into ``out`` and run on them; an earlier demo in ``out`` is replaced."""
    if out.exists() and any(out.iterdir()):
        if not (out / "digits").is_dir():
            raise RunFolderError(f"{out} holds something else than an earlier demo; give another --out")
        shutil.rmtree(out)
    data = out / "digits"
    write_digits(data)
    return run_api(
        data,
        out=out / "run",
        memory=MEMORY,
        time=TIME,
        models=MODELS,
        precision="fp32",
        sizes="40",
        test_sizes="40,44",
        recipe="upright",
        device="cpu",
        reporter=reporter,
        started_at=started_at,
        server=server,
    )

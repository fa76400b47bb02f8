"""What importing the package costs and offers."""

import subprocess
import sys

import pytest

import sta_lightning


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_no_heavy_library() -> None:
    loaded = imported_by("import sta_lightning; sta_lightning.__version__")
    assert not loaded & {"torch", "numpy", "lightning", "open_clip", "timm", "torchvision", "safetensors"}


def test_the_functions_on_tensors_and_files_cost_torch_alone() -> None:
    loaded = imported_by("from sta_lightning import StaError, fuse, forget, load_weights, encoder_weights")
    assert "torch" in loaded
    assert not loaded & {"lightning", "open_clip", "timm", "torchvision", "torchmetrics", "jsonargparse"}


@pytest.mark.parametrize("name", sta_lightning.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sta_lightning, name) is not None
    assert name in dir(sta_lightning)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fusion'"):
        sta_lightning.fusion  # noqa: B018

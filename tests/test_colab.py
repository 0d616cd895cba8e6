"""The notebook runs from its first cell to its last, at reduced size, and ends where it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.waiting import LONG

NOTEBOOK = Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> str:
    """Everything that the cells print, in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_NOTEBOOK_STEPS", "4")
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PLATFORMS", "cpu")
        book = nbformat.read(NOTEBOOK, as_version=4)
        here = {"metadata": {"path": NOTEBOOK.parent}}
        patient = dict(timeout=600, startup_timeout=LONG, iopub_timeout=LONG)
        NotebookClient(book, **patient, resources=here).execute()
    said = []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            said.append(output.get("text") or str(output.get("data", "")))
    return "\n".join(said)


def test_notebook_trains_and_exports_without_loss(outputs):
    assert "nats per token" in outputs
    assert "'model.safetensors'" in outputs
    assert "largest difference of logits: 0.0" in outputs


def test_notebook_draws_its_plot(outputs):
    assert "image/png" in outputs


def test_notebook_is_committed_without_outputs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)

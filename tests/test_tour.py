"""The notebook runs from top to bottom, and shows what its text speaks of."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"
missing = [name for name in ("nbclient", "nbformat", "ipykernel", "matplotlib") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install 'damro[dev]'")


def read_tour() -> Any:
    import nbformat

    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_no_results_are_stored() -> None:
    # Stored results would go stale with the next checkpoint.
    code = [cell for cell in read_tour().cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of jupyter's own, closed when they are collected
def test_it_runs_and_shows_what_it_says() -> None:
    from nbclient import NotebookClient

    tour = read_tour()
    # From the checkout, so that the package need not be installed; an error in a cell is raised here.
    NotebookClient(tour, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.get("name") == "stdout")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # the scene, its attention, the step
    # The captions that are scored are those that were changed, by the count that the notebook prints itself.
    [changed] = [line for line in text.splitlines() if line.startswith("DAMRO changed ")]
    assert 0 < int(changed.split()[2]) <= 40
    table = text[text.index("method     CHAIRi") :].splitlines()
    assert [row.split()[0] for row in table[1:4]] == ["greedy", "damro", "random-k"]
    greedy, damro = (list(map(float, row.split()[1:])) for row in table[1:3])
    assert greedy != damro and 0 < greedy[0] < 0.5 < greedy[2] <= 1
    for line in ("outliers on background:", "all patches on background:", "step  said"):
        assert line in text

"""The notebook runs from top to bottom, shows what its text speaks of, and holds what a run of it prints.

``python tests/test_tour.py`` runs it and stores what it prints and draws.
"""

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


def run(tour: Any) -> None:
    """Runs the notebook's cells; what they show stands in them, warnings and bars left out."""
    from nbclient import NotebookClient

    # From the checkout, so that the package need not be installed; an error in a cell is raised here.
    client = NotebookClient(
        tour, timeout=300, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    for cell in tour.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def printed(tour: Any) -> list[str]:
    """What each cell with code prints."""
    cells = [cell for cell in tour.cells if cell.cell_type == "code"]
    return ["".join(output.text for output in cell.outputs if output.get("name") == "stdout") for cell in cells]


def pictures(tour: Any) -> list[Any]:
    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_results_are_stored() -> None:
    # So that whoever opens it sees them. That they are not stale: the test below.
    assert len(pictures(read_tour())) == 3
    assert sum(map(bool, printed(read_tour()))) >= 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of jupyter's own, closed when they are collected
def test_it_runs_and_shows_what_it_says() -> None:
    tour, stored = read_tour(), printed(read_tour())
    run(tour)
    assert printed(tour) == stored, "python tests/test_tour.py stores what is printed now"
    text = "".join(stored)
    assert len(pictures(tour)) == 3  # the scene, its attention, the step
    # The captions that are scored are those that were changed, by the count that the notebook prints itself.
    [changed] = [line for line in text.splitlines() if line.startswith("DAMRO changed ")]
    assert 0 < int(changed.split()[2]) <= 40
    table = text[text.index("method     CHAIRi") :].splitlines()
    assert [row.split()[0] for row in table[1:4]] == ["greedy", "damro", "random-k"]
    greedy, damro = (list(map(float, row.split()[1:])) for row in table[1:3])
    assert greedy != damro and 0 < greedy[0] < 0.5 < greedy[2] <= 1
    for line in ("outliers on background:", "all patches on background:", "step  said"):
        assert line in text


if __name__ == "__main__":
    import nbformat

    shown = read_tour()
    run(shown)
    nbformat.write(shown, TOUR)

"""The order of the rooms: the import contracts of pyproject.toml."""

from pathlib import Path

import grimp
from importlinter.cli import lint_imports


def test_each_room_imports_from_the_rooms_below_it_and_no_room_in_a_circle() -> None:
    contracts = Path(__file__).parents[1] / "pyproject.toml"
    assert lint_imports(config_filename=str(contracts), no_cache=True, no_logo=True) == 0


def test_no_module_imports_the_room_that_it_lies_in() -> None:
    """The circle through a package's ``__init__``, which the contracts do not see."""
    graph = grimp.build_graph("sta_lightning", cache_dir=None)
    imports = {
        (module, found)
        for module in graph.modules
        for found in graph.find_modules_directly_imported_by(module)
    }
    assert {
        pair for pair in imports if pair[0].startswith(f"{pair[1]}.") and pair[1] != "sta_lightning"
    } == set()

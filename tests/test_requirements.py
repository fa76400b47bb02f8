"""requirements.txt is the runtime set of constraints.txt, with hashes and without addresses."""

import re

from scripts.requirements import CONSTRAINTS, REQUIREMENTS, pins, runtime


def test_it_pins_what_the_package_needs_at_run_time_to_the_constraints() -> None:
    required, constraints = pins(REQUIREMENTS), pins(CONSTRAINTS)
    assert set(required) == runtime()
    assert required == {name: constraints[name] for name in required}


def test_every_pin_has_hashes_and_there_is_nothing_else() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    entries = re.split(r"\n(?=\S)", "\n".join(lines))
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s\\]+( \\\n +--hash=sha256:[0-9a-f]{64})+", entry), entry
    assert len(entries) == len(pins(REQUIREMENTS))

from collections.abc import Mapping


def say(text: str) -> None:
    """Print on standard output at once."""
    print(text, flush=True)


def accuracy_table(metrics: Mapping[str, float]) -> str:
    """Accuracy per task as an aligned table, average and control last.

    Args:
        metrics: What was logged: ``test/<task>/acc``, ``test/avg_acc``, ``test/control/<name>/acc``
            or ``test/control/acc``; shares in [0, 1].
    """
    rows: list[tuple[str, float]] = []
    last: list[tuple[str, float]] = []
    for key, value in metrics.items():
        parts = key.split("/")
        if parts[0] != "test" or not key.endswith("acc"):
            continue
        if parts[1] == "avg_acc":
            last.insert(0, ("average", value))
        elif parts[1] == "control":
            last.append((f"{'/'.join(parts[2:-1])} (control)" if len(parts) > 3 else "control", value))
        else:
            rows.append(("/".join(parts[1:-1]), value))
    rows += last
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{'task':<{width}}  accuracy", f"{'-' * width}  --------"]
    return "\n".join(lines + [f"{name:<{width}}  {100 * value:7.2f}%" for name, value in rows])

"""One message for a mistake on the command line: what was asked, what was found, how to mend it.

An option that there is not is found from the options alone. jsonargparse reports every branch of
every union that it tried, nested: the lines that say something are kept, in plainer words where
those are known, else in its own.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

_NOISE = (
    *("Does not validate against any", "Subtypes:", "Errors:", "Given value", "Expected a path but"),
    *("Expected a <class 'NoneType'>", "Parser key", "Problem with given class_path", "Not a valid subclass"),
    *("Subclass types expect", "a class path (str)", "a dict with", "a dict without", "Subtype"),
)
_TYPE_WORDS = {
    "float": "a number",
    "int": "an integer",
    "str": "a text",
    "bool": "true or false",
    "dict": "a mapping (name: value)",
    "list": "a list",
}
_NOT_ACCEPTED = re.compile(
    r"(?:Option|Key|Group key|does not accept option|accept nested key) ['\"]([^'\"]+)['\"]"
)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name nearest to ``name``; empty if none is near."""
    names = list(dict.fromkeys(known))
    if within := next((item for item in names if item.endswith(f".{name}")), None):
        return f" Did you mean {within!r}?"
    names.sort()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near:  # a wrong prefix (`p` for `model.p`) leaves the last part
        by_leaf = {item.rsplit(".", 1)[-1]: item for item in reversed(names)}
        leaves = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.7)
        near = [by_leaf[leaf] for leaf in leaves]
    return f" Did you mean {near[0]!r}?" if near else ""


def _in_words(reason: str) -> str:
    """A type as people call it: ``Expected a <class 'float'>`` becomes ``expected a number``."""
    match = re.match(r"Expected an? (.+?)(?:\. Got value: .*)?$", reason, flags=re.DOTALL)
    if match is None:
        return reason
    kind = match.group(1)
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return f"expected one of {literal.group(1)}"
    plain = re.sub(r"^<class '([\w.]+)'>$", r"\1", kind)
    return f"expected {_TYPE_WORDS.get(plain, plain)}"


def _leaves(message: str) -> list[str]:
    """The informative lines of a nested message, in order, each once."""
    lines = (re.sub(r'^[\s-]*(Parser key "[^"]+":\s*)?', "", raw) for raw in message.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(_NOISE)))


def _given(message: str) -> str | None:
    """The value that was found, as jsonargparse prints it."""
    got = re.findall(r"Got value: (.*)", message) or re.findall(r"Given value: (.*)", message)
    if not got:
        return None
    value: str = got[0].strip()
    nested = re.match(r"NestedArg\(key='[^']*', val=(.*)\)$", value)
    value = nested.group(1) if nested else value
    return value if len(value) <= 120 else value[:117] + "..."


def unknown_option(words: Sequence[str], options: Iterable[str]) -> str | None:
    """The first option on a command line that there is not; ``None`` if all are known.

    Args:
        words: The command line after the subcommand.
        options: Every option, dotted, without dashes. What is inside the value of one may be given
            by a longer name, and several of them by a shorter one.
    """
    known = [*options, "help", "print_config"]
    for word in words:
        name = word[2:].split("=")[0].removesuffix("+")
        if word.startswith("--") and not any(
            f"{name.replace('-', '_')}.".startswith(f"{option}.")
            or option.startswith(f"{name}.")
            or option == name.replace("-", "_")
            for option in known
        ):
            return name
    return None


def explain(
    message: str, words: Sequence[str], *, command: str, options: Sequence[str], members: Sequence[str] = ()
) -> str:
    """One message for one mistake on the command line or in a configuration.

    Args:
        message: What jsonargparse says.
        words: The command line after the subcommand.
        command: The subcommand.
        options: See :func:`unknown_option`.
        members: Names of the options of the classes chosen for model, data and callbacks.
    """
    see_help = f" `sta {command} --help` lists the options."
    if (name := unknown_option(words, options)) is not None:
        hint = nearest(name, options) or nearest(name, members)
        return f"there is no option --{name}.{hint}{see_help}"
    if stray := re.match(r"unrecognized arguments: (\S*)", message):
        word = stray.group(1)
        return f"found {word!r}, which belongs to no option: write --option={word}.{see_help}"
    required = re.search(r"(?:arguments are required: |Key )([\w., \"]+?)(?: is required.*)?$", message)
    if "required" in message and required:
        names = [re.sub(rf"^{command}\.", "", n.strip(' "')) for n in required.group(1).split(",")]
        listed = ", ".join(f"--{n}" for n in names)
        return f"{listed} must be given, on the command line or in a file with --config=FILE.{see_help}"
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    key = ".".join(re.sub(rf"^{command}\.", "", part) for part in keys)
    place = f"--{key}: " if key else ""
    leaves = _leaves(message)
    for leaf in leaves:
        if rejected := _NOT_ACCEPTED.search(leaf):
            name = rejected.group(1)
            prefix = f"{key}." if key else ""
            if name == "class_path":
                return f"{place}beside class_path only init_args is read; found other keys too. Move them under init_args."
            hint = nearest(name, [*members, *options]) + (_class_help(command, key) or see_help)
            return f"{prefix}{name} is not an option.{hint}"
        if lost := re.search(r"dot import path string: (\S+)", leaf):
            return f"{place}there is no class {lost.group(1)!r}.{nearest(lost.group(1), members)}{see_help}"
    if missing := re.search(r"File does not exist: '?([^']+)'?", message):
        return f"{place}there is no file {missing.group(1)!r}. Check the path; a relative one starts at the current folder."
    reasons = [_in_words(leaf) for leaf in leaves]
    value = _given(message)
    if any(leaf.startswith("Expected") for leaf in leaves) and value is not None:
        text = value.strip("'\"")
        if text == "None":
            return f"--{key} must be given, on the command line or in a file with --config=FILE.{see_help}"
        return f"{place}{' or '.join(dict.fromkeys(reasons))}; found {text!r}.{_class_help(command, key) or see_help}"
    return f"{place}{' '.join(reasons) or ' '.join(message.split())}{see_help}"


def _class_help(command: str, key: str) -> str:
    """The hint at a class's own help, where model and data are chosen by name."""
    part = key.split(".")[0]
    if part not in ("model", "data") or command not in ("fit", "validate", "test", "probabilities"):
        return ""
    return f" `sta {command} --{part}.help=CLASS` lists the options of a class."

"""Documents that would exhaust Python are refused in their format's own way."""

import pytest
import yaml

from sta_lightning.documents import check_values, read_json, read_yaml

BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 6000, "no JSON"])
def test_what_is_no_json_or_too_deep_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the words are Python's
        read_json(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "a.0.0.*nested more than 64 deep"),
        ("".join(" " * depth + "a:\n" for depth in range(3000)), "nested too deeply"),
        ("seed: " + "9" * 6000, "4300 digits"),
        ("model: {seed: 9223372036854775808}", r"model\.seed is a whole number of more than 64 bits"),
        ("date: 2024-13-45", "month"),
        (r'model: {path: "a\0b"}', r"model\.path has a null character"),
        (r'{"a\0b": 1}', "null character"),
        ("model: &a [*a]", "holds itself"),
        (BOMB, "more than 1,000,000 values"),
    ],
    ids=range(10),
)
def test_what_no_setting_can_be_is_a_yaml_error(text: str, expected: str) -> None:
    with pytest.raises(yaml.YAMLError, match=expected):
        read_yaml(text)


def test_what_settings_are_made_of_is_read() -> None:
    text = "tasks: &t {a: [1, 2.5, null, true, x], b: {c: -9223372036854775808}}\nagain: *t\n"
    assert read_yaml(text) == yaml.safe_load(text)
    check_values({"a": ("x", [1])})

"""Licences are parsed, recognised by their words, and refused with the option that would permit them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitwithin.errors import UsageError
from fitwithin.weights.licences import PERMISSIVE, describe, licence_in, licence_of_text, parse_licences, refusal


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("permissive", PERMISSIVE),
        ("Permissive, CC-BY-NC-4.0", (*PERMISSIVE, "cc-by-nc-4.0")),
        ("mit,MIT,,", ("mit",)),
        (["unknown", "permissive"], ("unknown", *PERMISSIVE)),
    ],
)
def test_parsing(given: str | list[str], meant: tuple[str, ...]) -> None:
    assert parse_licences(given) == meant
    assert sorted(parse_licences(describe(meant))) == sorted(meant)


@pytest.mark.parametrize("given", ["", " , ", []])
def test_none_given(given: str | list[str]) -> None:
    with pytest.raises(UsageError, match="no licence was given; write 'permissive'"):
        parse_licences(given)


def test_a_refusal_names_the_licence_and_the_option() -> None:
    assert refusal("x", "mit", PERMISSIVE) == ""
    assert refusal("x", "cc-by-nc-4.0", PERMISSIVE) == (
        "the licence of x is cc-by-nc-4.0, which is not among those permitted; "
        "--licences permissive,cc-by-nc-4.0 permits it"
    )
    assert refusal("x", "unknown", ("mit",)) == ("nobody states a licence for x; --licences mit,unknown permits it")


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Apache License\n   Version 2.0, January 2004\n", "apache-2.0"),
        ('Licensed under the Apache License, Version 2.0 (the "License");', "apache-2.0"),
        ("MIT License\n\nPermission is hereby granted,\nfree of charge, to any person obtaining", "mit"),
        ("... 3. Neither the name of the copyright holder nor the names of its", "bsd-3-clause"),
        ("Creative Commons Attribution 4.0 International Public License", "cc-by-4.0"),
        ("Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("CC-BY-4.0\n", "cc-by-4.0"),
        ("All rights reserved.", "unknown"),
        ("", "unknown"),
    ],
)
def test_texts(text: str, licence: str, tmp_path: Path) -> None:
    assert licence_of_text(text) == licence
    assert licence_in(tmp_path) == ""
    (tmp_path / "LICENSE.txt").write_text(text, encoding="utf-8")
    assert licence_in(tmp_path) == licence

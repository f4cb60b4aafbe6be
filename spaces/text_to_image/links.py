"""Links that reproduce a picture: all settings in the query of the page's address."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from urllib.parse import urlencode

from painting import Wish


def to_query(wish: Wish) -> str:
    """The query of an address, with its question mark."""
    return "?" + urlencode({name: value for name, value in asdict(wish).items() if value != ""})


def from_query(query: Mapping[str, str]) -> Wish | None:
    """
    What a link asks for; None for an address without a prompt.

    Raises:
        ValueError: where a number in it is none.
    """
    if not query.get("prompt"):
        return None
    values = {}
    for field in fields(Wish):
        text = query.get(field.name)
        if text is None:
            continue
        try:
            values[field.name] = {"int": int, "float": float}.get(getattr(field.type, "__name__", ""), str)(text)
        except ValueError as error:
            raise ValueError(f"This link is damaged: {field.name}={text[:40]!r} is no number.") from error
    return Wish(**values)

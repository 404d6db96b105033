"""What one configuration knob may be: its kind, limits and words, and how its value is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

Kind = Literal["size", "int", "float", "bool", "choice", "text"]


_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:b|([kmgt])(?:ib)?)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that "64 MiB", "64M" or "67108864" mean; units are powers of 1,024.

    Raises ValueError for anything else, "64 MB" included: it means two things to two people.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a size like 64M, 64 MiB or 67108864")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def format_size(size: int) -> str:
    """Return bytes in the largest unit that divides them: 67108864 is "64 MiB"."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class Knob:
    """What is allowed for one key, and what it does in one line."""

    kind: Kind
    about: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    default_text: str = ""  # where the default depends on the machine or the user

    def allowed(self) -> str:
        """Say in words which values are accepted."""
        match self.kind:
            case "bool":
                return "true or false"
            case "choice":
                return " or ".join(f'"{choice}"' for choice in self.choices)
            case "text":
                return "text"
            case "size":
                return f"a size from {format_size(int(self.low))} to {format_size(int(self.high))}"
            case "int":
                return f"a whole number from {self.low:_.0f} to {self.high:_.0f}"
            case "float":
                return f"a number from {self.low:g} to {self.high:g}"

    def parse(self, value: object) -> object:
        """Return the value in its Python type, or raise ValueError saying what is wrong with it."""
        if self.kind == "size" and isinstance(value, str):
            value = parse_size(value)
        elif self.kind == "float" and type(value) is int:
            value = float(value)
        wanted = {
            "size": int,
            "int": int,
            "float": float,
            "bool": bool,
            "choice": str,
            "text": str,
        }[self.kind]
        if type(value) is not wanted:  # `type`, since True is an int to isinstance
            raise ValueError("wrong type")
        if self.kind == "choice" and value not in self.choices:
            raise ValueError("no such choice")
        # Written so that NaN fails as well.
        if (
            isinstance(value, int | float)
            and self.kind != "bool"
            and not self.low <= value <= self.high
        ):
            raise ValueError("out of range")
        return value


def size_knob(default: int, about: str, *, low: int, high: int) -> int:
    """A dataclass field for a number of bytes."""
    return field(default=default, metadata={"knob": Knob("size", about, low, high)})


def int_knob(default: int, about: str, *, low: int, high: int) -> int:
    """A dataclass field for a whole number."""
    return field(default=default, metadata={"knob": Knob("int", about, low, high)})


def float_knob(default: float, about: str, *, low: float, high: float) -> float:
    """A dataclass field for a number; whole numbers are taken too."""
    return field(default=default, metadata={"knob": Knob("float", about, low, high)})


def choice_knob(default: str, about: str, *choices: str) -> str:
    """A dataclass field for one of a few words."""
    return field(default=default, metadata={"knob": Knob("choice", about, choices=choices)})


def text_knob(default: str, about: str) -> str:
    """A dataclass field for words of the user's own."""
    return field(default=default, metadata={"knob": Knob("text", about)})


def bool_knob(factory: Callable[[], bool], about: str, *, default_text: str) -> bool:
    """A dataclass field for a switch whose default depends on the machine or the user."""
    return field(
        default_factory=factory,
        metadata={"knob": Knob("bool", about, default_text=default_text)},
    )

"""What the models and the processors return: records and dictionaries that read as transformers' do."""

from dataclasses import dataclass, fields
from typing import Any


class Features(dict):
    """A dictionary whose keys are attributes too: `inputs["input_ids"]` is `inputs.input_ids`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are: {', '.join(self)}") from None


@dataclass
class Output:
    """A record read by attribute, by key or by position; fields that are None count only by attribute."""

    def _present(self) -> dict[str, Any]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def keys(self):
        return self._present().keys()

    def values(self):
        return self._present().values()

    def items(self):
        return self._present().items()

    def __iter__(self):
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, name: str) -> bool:
        return name in self._present()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self._present()[key]
        return self.to_tuple()[key]

    def get(self, name: str, default: Any = None) -> Any:
        return self._present().get(name, default)

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order; records inside stay records."""
        return tuple(self._present().values())

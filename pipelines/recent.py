"""Values that are kept while they are used."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values used last, at most `max_size` of them."""

    def __init__(self, max_size: int):
        self.max_size = max_size
        self.values: OrderedDict[object, Value] = OrderedDict()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there."""
        if key not in self.values:
            self.values[key] = make()
        self.values.move_to_end(key)
        if len(self.values) > self.max_size:
            self.values.popitem(last=False)
        return self.values[key]

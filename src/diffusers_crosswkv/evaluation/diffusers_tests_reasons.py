"""Why some of Diffusers' tests cannot pass with our U-Net: a table that `diffusers_tests` reads."""

from typing import NamedTuple


class Inapplicable(NamedTuple):
    reason: str
    tests: tuple[str, ...]  # patterns of `file::Class::test`


INAPPLICABLE: tuple[Inapplicable, ...] = ()

"""The memory transport: the contract at several world sizes, and what only it does."""

from __future__ import annotations

import pytest
from contract import CHECKS, CLOSING_CHECKS, Check, name_of

from node_comm import memory


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("check", CHECKS + CLOSING_CHECKS, ids=name_of)
def test_contract(check: Check, size: int) -> None:
    memory.run(check, size)

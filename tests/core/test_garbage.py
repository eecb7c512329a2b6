"""Long-lived processes leave what they have loaded out of collections."""

from __future__ import annotations

import subprocess
import sys


def test_what_lived_before_is_not_collected_and_what_comes_after_is() -> None:
    code = """
import gc
from core.garbage import spare_what_lives
class Cycle:
    gone = 0
    def __init__(self): self.me = self
    def __del__(self): Cycle.gone += 1
lived = [Cycle() for _ in range(1000)]
spare_what_lives()
assert not any(isinstance(o, Cycle) for o in gc.get_objects())  # out of every generation: what collections walk through
assert gc.get_freeze_count() > 1000
Cycle()
gc.collect()
assert Cycle.gone == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_that_plans_ahead_keeps_what_lives_out_of_collections_until_it_ends() -> None:
    code = """
import gc
from core import Engine
with Engine("demo", async_scheduling=True, max_model_len=64) as engine:
    assert gc.get_freeze_count() > 10_000
    with Engine("demo", async_scheduling=False, max_model_len=64):
        pass
    assert gc.get_freeze_count() > 10_000
assert gc.get_freeze_count() == 0
gc.freeze()  # the caller's own
with Engine("demo", async_scheduling=True, max_model_len=64):
    pass
assert gc.get_freeze_count() > 10_000
"""
    subprocess.run([sys.executable, "-c", code], check=True)

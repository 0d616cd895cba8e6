"""What a model will need and do on a slice of accelerators, before any is rented.

    plan = make_plan(zoo.config("llama-3.1-8b"), Workload("train", 32, 4096), parse("v5e:4x4"))
    plan.fits, plan.memory.left, plan.tokens_per_second

`hardware` has the chips, `workload` the programs, `compiled` asks TPU's compiler, `hlo` reads what
it made, `estimate` does the same by arithmetic, `search` ranks meshes, and `report` prints.
"""

from zoo.plan.hardware import CHIPS, Chip, Topology, parse
from zoo.plan.planner import Memory, Plan, make_plan
from zoo.plan.workload import Workload

__all__ = ["CHIPS", "Chip", "Memory", "Plan", "Topology", "Workload", "make_plan", "parse"]

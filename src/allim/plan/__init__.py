"""`allim plan`: the number of machines that a load needs, computed from measured figures.

Source: docs/scaling.md, which is computed with this package; `bench/` measures the figures.
"""

from allim.plan.figures import Each, Headroom, Load, Measured, figures
from allim.plan.machines import Plan, fitting, plan
from allim.plan.planner import Impossible, Need, Part, Planner
from allim.plan.text import as_json, as_text, number

__all__ = [
    "Each",
    "Headroom",
    "Impossible",
    "Load",
    "Measured",
    "Need",
    "Part",
    "Plan",
    "Planner",
    "as_json",
    "as_text",
    "figures",
    "fitting",
    "number",
    "plan",
]

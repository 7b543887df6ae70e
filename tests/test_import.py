"""``import hypergradient`` is cheap after ``import torch``: it imports no module that torch has not imported, and defines no operator."""

import subprocess
import sys

CODE = """
import sys
import torch
before = set(sys.modules)
import hypergradient
print(*sorted(set(sys.modules) - before))
print(hasattr(torch.ops.hypergradient, "step"))
hypergradient.SGDHD([torch.nn.Parameter(torch.ones(1))])
print(hasattr(torch.ops.hypergradient, "step"))
"""


def test_import_loads_nothing_but_its_own_modules() -> None:
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    modules, at_import, at_first_optimizer = out.splitlines()
    assert [name for name in modules.split() if name.partition(".")[0] != "hypergradient"] == []
    assert [name for name in modules.split() if name.startswith(("hypergradient.lab", "hypergradient.integrations"))] == []
    assert (at_import, at_first_optimizer) == ("False", "True")  # the operator that torch.compile needs: not at import

"""`python -m tem_taichi.simulate scene.yaml [overrides]`: see tem_taichi.cli.

`tem_taichi.simulate` is also the function of `tem_taichi.series.simulate`. Importing this module
puts it in the function's place, so the module can be called like it.
"""

import sys
from types import ModuleType
from typing import Any

from tem_taichi.cli import main


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from tem_taichi.series.simulate import simulate

        return simulate(*arguments, **keywords)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = _Callable

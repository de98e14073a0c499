"""`python -m tem_taichi.simulate scene.yaml [overrides]`: see tem_taichi.cli."""

import sys

from tem_taichi.cli import main

if __name__ == "__main__":
    sys.exit(main())

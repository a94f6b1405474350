"""The commands of `vaefast`, in the order in which `vaefast --help` names them.

A module's `add(subparsers)` adds its commands; each sets `command`, which is called with the options by name, returns
the exit code or None, and raises `inputs.CommandError` for what the user can put right.
"""

from vaefast.commands import bench, evaluate, info, pictures, report, train

MODULES = (train, pictures, evaluate, report, info, bench)

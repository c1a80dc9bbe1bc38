"""torchvision, also where its compiled operators do not load ("operator torchvision::nms does not exist").

They load only beside the build of torch that they were made for. Data sets, transforms and classifiers call none of
them: an empty module in place of the one that describes their shapes to torch lets the rest of torchvision load.
"""

import sys
from types import ModuleType


def torchvision() -> ModuleType:
    """torchvision; after this call, `import torchvision` works everywhere, in packages that import it too.

    Raises ImportError where torchvision is not installed.
    """
    try:
        import torchvision
    except RuntimeError:
        name = "torchvision._meta_registrations"
        sys.modules[name] = ModuleType(name)
        import torchvision
    return torchvision

"""This pipeline beside its peers: how long it takes, and how robust its models are by others' attacks.

torchvision, which the peers import, has compiled operators that do not load beside every build of CPU torch ("operator
torchvision::nms does not exist"). Nothing here calls them: an empty module in place of the one that registers their
shapes lets the rest of torchvision load.
"""

import sys
from types import ModuleType

sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

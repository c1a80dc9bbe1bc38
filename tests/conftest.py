"""Shared by all tests."""

import sys
import types

# pytorch-ood, an oracle of the OOD tests, imports torchvision, whose compiled operators do not load beside every build
# of CPU torch ("operator torchvision::nms does not exist"). Nothing here calls them: an empty module in place of the
# one that registers their shapes lets the rest of torchvision load.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

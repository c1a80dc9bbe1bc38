"""This pipeline beside its peers: how long it takes, and how robust its models are by others' attacks."""

from stages.common import vision

vision.torchvision()  # the peers import it

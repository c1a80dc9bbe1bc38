"""A full disk: one message, exit status 1, nothing lost, and on it goes when there is space."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.repository import ROOT

MOUNT = 'mount -t tmpfs -o size=24m none "$SMALL_DISK" && exec "$@"'


def test_on_a_small_disk(tmp_path):
    """The tests of on_a_full_disk.py, in a namespace where a small file system can be mounted for them alone."""
    env = os.environ | {"SMALL_DISK": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for who in ("-m", "-rm"):  # as root; as anybody, where the kernel lets them be root of a namespace
        alone = ["unshare", who, "sh", "-c", MOUNT, "sh"]
        if shutil.which("unshare") and subprocess.run([*alone, "true"], env=env, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("neither root nor user namespaces: no small disk can be mounted")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/on_a_full_disk.py"]
    done = subprocess.run([*alone, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

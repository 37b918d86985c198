"""The public names of the packages: all are there, none costs anything before it is used."""

import subprocess
import sys

import pytest

import epizoo
import epizoo.detection
import tuning


def test_importing_epizoo_imports_nothing_heavy():
    code = (
        "import sys, epizoo; heavy = {'tensorflow', 'keras', 'numpy', 'scipy', 'numba'} & set(sys.modules); "
        "assert not heavy, heavy; assert 'create' in dir(epizoo)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", [epizoo, epizoo.detection, tuning], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package):
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="craete"):
        _ = package.craete

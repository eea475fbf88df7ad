"""While packages are loaded nothing is looked through for garbage; afterwards new objects are again."""

import gc

from bitplan.core.garbage import loading_packages


def test_no_garbage_is_looked_for_while_packages_are_loaded():
    with loading_packages():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off():
    gc.disable()
    try:
        with loading_packages():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

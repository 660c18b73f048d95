"""Golden files: what instructions do on a GPU, to which the emulator is held.

``cases`` is the table. ``scripts/record_golden.py`` runs it on a GPU,
``tests/emulator/test_golden.py`` on the emulator.
"""

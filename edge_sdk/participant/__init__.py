"""The device's side of the protocol as a machine without I/O: events in, effects out.

``machine.apply`` is the step, ``events`` its vocabulary, ``state`` its memory; ``models``, ``training`` and
``updates`` hold one concern each.
"""

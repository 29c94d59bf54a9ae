"""Building blocks of calibrators: evidence, loops that learn, rows of states, tables of errors.

A calibrator's file imports from here and from `jaxdq.calibration._base`, and from no other calibrator.
"""

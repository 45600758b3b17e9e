"""placeholder"""

CASES: dict = {}

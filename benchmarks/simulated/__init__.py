"""Search methods over problems of known truth, in virtual time: the parts of `benchmarks/search.py`.

Problems know no method and methods no truth; `driving.py` is all that both meet in.
"""

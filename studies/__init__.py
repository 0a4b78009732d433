"""One file for each table and figure of xiao-2020: ``python -m studies.NAME --scale small --root
DIR --f_b FILE``.
"""

"""Stands for vLLM where a test asks only whether it is installed: of `make test-py312`, whose environment has none.

What imports anything of it fails.
"""

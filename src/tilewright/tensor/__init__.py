"""Tensors: lazy values over the graph, and the functions of the Array API standard on them.

The public names live in the package ``tilewright`` itself.
"""

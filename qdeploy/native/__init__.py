"""The compiler of model files to C: read the graph, lower it, plan its memory, and write C99 that gives its numbers.

Stages, one file each: ``onnx_graph`` (bytes to nodes) - ``lower`` (nodes to the operators of ``ir``) - ``passes`` -
``layout`` - ``memory`` - ``emit`` (C, with the kernels in ``c/``). ``simulate`` is the oracle: what the C computes, in
numpy, bit for bit.
"""

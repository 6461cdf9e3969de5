"""The CPU target: tile IR to LLVM to machine code, in process, run on a worker pool."""

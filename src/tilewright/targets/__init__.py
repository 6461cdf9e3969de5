"""Where kernels run: one package per target, all behind :class:`tilewright.targets.base.Target`."""

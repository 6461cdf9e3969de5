"""Data for training: files to arrays, arrays to batches.

Everything here gives NumPy arrays. A loader is an iterator of batches with two more methods:
``state()`` says in a small dict of JSON values where it stands, ``restore(state)`` puts it there,
and the batches that follow are the same, bit for bit. What a loader gives depends on its arguments
and its seed only, not on threads, prefetching or the machine.

::

    tokens = data.open_tokens("corpus.npy", vocab_size=tokenizer.vocab_size)
    loader = data.RandomWindows(tokens, batch=16, context=256, seed=1)
    with data.Prefetch(loader) as batches:
        x, y = next(batches)                    # int32 (16, 256) each, y one token ahead of x
        checkpoint["data"] = batches.state()
"""

from __future__ import annotations

from tilewright.data.images import ImageFolder, read_image
from tilewright.data.loader import Batches, Loader, RandomWindows, Windows
from tilewright.data.mnist import ImageSet, load_mnist
from tilewright.data.prefetch import Prefetch
from tilewright.data.tokens import (
    encode_text,
    open_tokens,
    split,
    tokenize_files,
    tokenize_texts,
    write_tokens,
)
from tilewright.formats.arrays import read_idx, read_npy, read_npz
from tilewright.formats.fasta import FastaRecord, read_fasta
from tilewright.formats.text import read_text

__all__ = [
    "Batches",
    "FastaRecord",
    "ImageFolder",
    "ImageSet",
    "Loader",
    "Prefetch",
    "RandomWindows",
    "Windows",
    "encode_text",
    "load_mnist",
    "open_tokens",
    "read_fasta",
    "read_idx",
    "read_image",
    "read_npy",
    "read_npz",
    "read_text",
    "split",
    "tokenize_files",
    "tokenize_texts",
    "write_tokens",
]

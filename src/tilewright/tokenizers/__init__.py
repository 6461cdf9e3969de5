"""Text to token ids and back, from the tokenizer that a file carries.

Importing this package is cheap: the ``tokenizers`` library is loaded by the first encode of a
byte-level BPE vocabulary, and the GGUF reader by :func:`from_gguf`.
"""

from __future__ import annotations

from tilewright.tokenizers.json_file import from_json
from tilewright.tokenizers.load import from_gguf, from_metadata
from tilewright.tokenizers.tokenizer import Tokenizer

__all__ = ["Tokenizer", "from_gguf", "from_json", "from_metadata"]

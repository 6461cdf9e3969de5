"""Seconds to learn 1,000 merges from protein sequences, beside the library on its own.

    python -m benchmarks.tokenizer_training FASTA... [--merges 1000] [-r 3] [--json OUT]

Without files: all FASTA in ``../shared/assets/protein``. Records whose header begins with ``rev_``
(decoys) are left out. Both sides read the files, train, and must learn equal merges; the peer is
`tokenizers` with a reader of a few lines, sequences as words and no pre-tokeniser but the bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.common import machine, spread, table, time_once, write_report
from tilewright.tokenizers.train import read_corpus, train_bpe

ASSETS = Path(__file__).resolve().parent.parent.parent / "shared" / "assets" / "protein"
DECOY = "rev_"


def read_plainly(paths: list[Path]) -> list[str]:
    """Sequences of FASTA files, decoys and the stop codons' asterisks left out."""
    found = []
    for path in paths:
        for record in ("\n" + path.read_text()).split("\n>")[1:]:
            header, _, lines = record.partition("\n")
            if not header.startswith(DECOY):
                found.append(lines.replace("\n", "").rstrip("*"))
    return found


def train_plainly(paths: list[Path], merges: int) -> list[str]:
    """The library on its own; (merges, in the order they were learned)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(read_plainly(paths), trainer)
    return [" ".join(pair) for pair in json.loads(engine.to_str())["model"]["merges"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--merges", type=int, default=1000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    files = args.files or sorted(p for p in ASSETS.glob("*") if p.suffix in (".fasta", ".faa"))
    if not files:
        parser.error(f"no FASTA files given, and none in {ASSETS}")
    sequences = read_plainly(files)
    residues = sum(map(len, sequences))
    print(f"{len(files)} files, {len(sequences)} sequences, {residues} residues")

    learned: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {"tilewright": [], "tokenizers": []}

    def ours() -> None:
        texts = read_corpus(files, fasta=True, skip=DECOY)
        learned["tilewright"] = train_bpe(texts, 257 + args.merges)["tokenizer.ggml.merges"]

    def peer() -> None:
        learned["tokenizers"] = train_plainly(files, args.merges)

    for _ in range(args.rounds):
        seconds["tilewright"].append(time_once(ours))
        seconds["tokenizers"].append(time_once(peer))
        if learned["tilewright"] != learned["tokenizers"]:
            pairs = enumerate(zip(learned["tilewright"], learned["tokenizers"]))
            raise SystemExit(f"the merges differ: {next(p for p in pairs if p[1][0] != p[1][1])}")
    spreads = {name: spread(values) for name, values in seconds.items()}
    rows = [(name, str(s), str(len(learned[name]))) for name, s in spreads.items()]
    print(table(("", "seconds", "merges"), rows))
    print("merges are equal")
    write_report(
        args.json,
        {
            "machine": machine(),
            "files": [path.name for path in files],
            "sequences": len(sequences),
            "residues": residues,
            "merges": args.merges,
            "seconds": spreads,
        },
    )


if __name__ == "__main__":
    main()

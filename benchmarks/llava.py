"""LLaVA-OneVision from its three ONNX graphs, at real sizes, beside transformers.

    python -m benchmarks.llava --models DIR -t 2 --tokens 6 --json OUT

The graphs are exported from a network with random weights (3.5 GB, minutes) unless they are there.
Features of an image, logits of a prompt and of greedily chosen tokens are compared with the
network's own; a step feeds one token, its past kept in place.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.reference.llava_exports import export_llava

from benchmarks.common import machine, spread, write_report


def apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def main() -> None:
    """Read the command line and run."""
    import torch

    import tilewright.onnx

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", required=True, type=Path)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--json")
    args = parser.parse_args()
    net = export_llava(args.models, small=False)
    torch.set_num_threads(args.threads)

    def load(name: str) -> Any:
        return tilewright.onnx.load(args.models / f"{name}.onnx", threads=args.threads)

    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((1, 3, 384, 384)).astype(np.float32)
    vision = load("vision_encoder")
    vision.run({"pixel_values": pixels})
    begin = time.perf_counter()
    features = vision.run({"pixel_values": pixels})["image_features"]
    report: dict[str, Any] = {"machine": machine(), "vision_s": time.perf_counter() - begin}
    del vision
    with torch.no_grad():
        tower = net.model.vision_tower(torch.from_numpy(pixels), output_hidden_states=True)
        want = net.model.multi_modal_projector(tower.hidden_states[-1]).numpy()
    report["features_apart"] = apart(features, want)

    embed, decoder = load("embed_tokens"), load("decoder_model_merged").stateful(capacity=256)
    ids = rng.integers(0, 150000, (1, 12))
    new, times, differences, same = ids, [], [], True
    for _ in range(args.tokens):
        begin = time.perf_counter()
        total = ids.shape[1]
        feeds = {
            "inputs_embeds": embed.run({"input_ids": new})["inputs_embeds"],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - new.shape[1], total)[None],
        }
        logits = decoder.run(feeds)["logits"][:, -1]
        times.append(time.perf_counter() - begin)
        with torch.no_grad():
            theirs = net(input_ids=torch.from_numpy(ids)).logits[:, -1].numpy()
        differences.append(apart(logits, theirs))
        same &= bool(logits.argmax() == theirs.argmax())
        new = logits.argmax(-1)[:, None]
        ids = np.concatenate([ids, new], 1)
    report |= {"logits_apart": max(differences), "same_choices": same, "prompt_s": times[0]}
    report["token_s"] = spread(times[2:])  # the first of one token compiles
    print(f"vision {report['vision_s']:.2f} s, features {report['features_apart']:.1e} apart")
    print(f"logits {report['logits_apart']:.1e} apart, same choices: {same}")
    print(f"a token {report['token_s']} s")
    write_report(args.json, report)


if __name__ == "__main__":
    main()

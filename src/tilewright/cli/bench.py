"""``tilewright bench``: tokens per second of a model file, beside the machine's limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.cli.common import gigabytes, load_model, table

__all__ = ["bench"]


def bench(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="A GGUF file; without one, the model that ships inside."
        ),
    ] = None,
    prompt: Annotated[
        int,
        typer.Option(
            "-p", "--prompt-tokens", metavar="N", min=0, help="Tokens to prefill; 0: skip."
        ),
    ] = 512,
    generate: Annotated[
        int, typer.Option("-n", "--tokens", metavar="N", min=0, help="Tokens to decode; 0: skip.")
    ] = 128,
    threads: Annotated[
        int | None,
        typer.Option(
            "-t", "--threads", metavar="N", min=1, help="Worker threads.  [default: one per core]"
        ),
    ] = None,
    repetitions: Annotated[
        int,
        typer.Option(
            "-r", "--repetitions", metavar="N", min=1, help="Repetitions after a warm-up."
        ),
    ] = 5,
    depth: Annotated[
        int,
        typer.Option(
            "-d", "--depth", metavar="N", min=1, help="Tokens in the context before decoding."
        ),
    ] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure prefill and decode speed, beside the machine's bandwidth and peak.

    The machine's own limits are measured in the same run, before and after.
    """
    from tilewright.generate.measure import decode_bytes, measure
    from tilewright.targets.cpu.probe import Probe

    need = max(prompt, generate + depth)
    model = load_model(file, threads=threads, context=max(need, 64), quiet=as_json)
    limit = model.engine.limits.context
    if need > limit:
        raise ValueError(
            f"{need} tokens do not fit the model's context of {limit}; lower -p, -n or -d"
        )
    with Probe(model.threads) as probe:  # before and after: a shared machine changes its mind
        before = probe.peaks()
        prefill, decode = measure(model, prompt, generate, repetitions, depth)
        after = probe.peaks()
    bandwidth = max(before.read_gbytes, after.read_gbytes) * 1e9
    peak = max(before.fma_gflops, after.fma_gflops) * 1e9
    int8_peak = 2 * max(before.dot4_gmacs, after.dot4_gmacs) * 1e9
    per_token = decode_bytes(model, depth + generate // 2)
    flops = 2 * model.matrix_weights
    report: dict[str, Any] = {
        "model": str(file) if file else "default",
        "threads": model.threads,
        "repetitions": repetitions,
        "prompt_tokens": prompt,
        "decode_tokens": generate,
        "decode_context": depth,
        "prefill_tokens_per_s": asdict(prefill) if prefill else None,
        "decode_tokens_per_s": asdict(decode) if decode else None,
        "bytes_per_token": per_token,
        "flops_per_token": flops,
        "bandwidth_bytes_per_s": bandwidth,
        "peak_f32_flops": peak,
        "peak_int8_ops": int8_peak,
        "decode_share_of_bandwidth": decode.median * per_token / bandwidth if decode else None,
        "prefill_share_of_f32_peak": prefill.median * flops / peak if prefill else None,
        "prefill_share_of_int8_peak": prefill.median * flops / int8_peak if prefill else None,
    }
    if as_json:
        print(json.dumps(report))
        return
    rows: list[tuple[Any, ...]] = [("", "median", "min", "max", "share of the machine")]
    if prefill:
        share = (
            f"{report['prefill_share_of_f32_peak']:.0%} of {peak / 1e9:.0f} GFLOP/s f32, "
            f"{report['prefill_share_of_int8_peak']:.0%} of {int8_peak / 1e9:.0f} GOP/s int8"
        )
        rows.append((f"prefill {prompt}", *_rates(prefill), share))
    if decode:
        share = f"{report['decode_share_of_bandwidth']:.0%} of {gigabytes(bandwidth)}/s"
        rows.append((f"decode {generate} at {depth}", *_rates(decode), share))
    print(table(rows))
    print(f"tokens/s, {model.threads} threads; {gigabytes(per_token)} read per decoded token")


def _rates(speed: Any) -> tuple[str, str, str]:
    return f"{speed.median:.1f}", f"{speed.min:.1f}", f"{speed.max:.1f}"

"""rope-export export: one layer of a model as an ONNX artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rope_export.artifacts.decoder import DecoderManifest
from rope_export.artifacts.manifest import Manifest
from rope_export.cli import output
from rope_export.cli.inspect import manifest_facts
from rope_export.errors import InputError

if TYPE_CHECKING:
    from rope_export.artifacts.artifact import Artifact
    from rope_export.artifacts.decoder import DecoderArtifact


def export_layer(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, a .gguf file, a config file (weights drawn from --seed), "
            "or a hub id.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The artifact's folder.")],
    decoder: Annotated[
        bool, typer.Option("--decoder", help="The whole causal LM, not one layer.")
    ] = False,
    layer: Annotated[int | None, typer.Option(help="Index of the layer; 0 unless given.")] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Inner config of a model of several towers, such as vision_config."),
    ] = None,
    lowering: Annotated[
        str, typer.Option(help="auto, portable, standard, ort or tensorrt.")
    ] = "auto",
    cache: Annotated[str, typer.Option(help="none, growing or fixed.")] = "growing",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    weights: Annotated[
        str | None, typer.Option(help="int8 or int4: quantize the projections.")
    ] = None,
    weights_for: Annotated[
        str | None,
        typer.Option(
            metavar="PARTS",
            help="With --decoder and --weights: attention,mlp,experts,embedding,head; all unless "
            "given.",
        ),
    ] = None,
    block_size: Annotated[
        int, typer.Option(help="Inputs that share a scale, with --weights.")
    ] = 32,
    accuracy_level: Annotated[
        int,
        typer.Option(help="With --weights: 4 rounds activations to int8, 1 keeps float32."),
    ] = 4,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset; newer than the lowering's own.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the weights that are drawn for a config file.")
    ] = 0,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A LoRA adapter to merge, or none to leave out the one beside the model.",
        ),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(help="With --decoder: last, of each row's last token, or all."),
    ] = None,
    padding: Annotated[
        bool | None,
        typer.Option(
            "--padding/--no-padding",
            help="Of a layer, take an attention_mask as an input. With --decoder, --no-padding is "
            "faster and for calls without padding alone.",
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Time every lowering here and take the fastest.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare with eager PyTorch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Export one attention layer, or a whole decoder, and prove that it computes what PyTorch
    computes."""
    for name, value, choices in (
        ("cache", cache, ("none", "growing", "fixed")),
        ("dtype", dtype, ("float32", "float16", "bfloat16")),
        ("logits", logits or "last", ("last", "all")),
    ):
        if value not in choices:
            raise InputError(f"--{name} {value}: use one of {', '.join(choices)}.")
    if tune and lowering != "auto":
        raise InputError(f"--tune and --lowering {lowering}: --tune looks for the lowering.")
    _check_together(
        decoder=decoder,
        layer=layer,
        part=part,
        tune=tune,
        only_decoder={"--logits": logits, "--weights-for": weights_for},
    )
    with output.progress() as step:
        step("loading PyTorch", None)
        options: dict[str, Any] = {
            "cache": cache,
            "dtype": dtype,
            "weights": weights,
            "block_size": block_size,
            "accuracy_level": accuracy_level,
            "opset": opset,
            "seed": seed,
            "adapter": adapter,
        }
        if decoder:
            parts = {} if weights_for is None else {"weights_for": weights_for.split(",")}
            options |= {"logits": logits or "last", "padding": padding is not False, **parts}
        else:
            options |= {"layer": layer or 0, "part": part, "padding": bool(padding)}
        artifact: Any
        if tune:
            from rope_export.bench.tune import tuned

            artifact = tuned(source, out=out, progress=step, **options)
        else:
            from rope_export import export, export_decoder

            options |= {"lowering": lowering, "progress": lambda name: step(name, None)}
            artifact = (export_decoder if decoder else export)(source, out=out, **options)
        output.notes(artifact.manifest.source.get("notes", ()))
        report = None
        if not no_verify:
            from rope_export.parity import verify

            report = verify(artifact, source=source, progress=step)
    output.warn(artifact.warnings if report is None else report.notes)
    parity = output.report_json(report, context) if report else None
    if as_json:
        facts = {"artifact": str(artifact.path), "manifest": manifest_facts(artifact.manifest)}
        output.print_json({**facts, "parity": parity})
    else:
        output.out().print(f"{artifact.path}: {summary(artifact)}", soft_wrap=True)
        if report:
            output.print_report(
                report, f"{artifact.path} against eager PyTorch", context, every_row=False
            )
    return output.PASSED[report.status] if report else 0


def _check_together(
    *,
    decoder: bool,
    layer: int | None,
    part: str | None,
    tune: bool,
    only_decoder: dict[str, str | None],
) -> None:
    """Raises: InputError for options that do not go together."""
    for flag, value in only_decoder.items():
        if not decoder and value is not None:
            raise InputError(f"{flag} {value}: it is for whole models, so it goes with --decoder.")
    if not decoder:
        return
    for flag, given in (
        (f"--layer {layer}", layer is not None),
        (f"--part {part}", part is not None),
        ("--tune", tune),
    ):
        if given:
            raise InputError(
                f"{flag} and --decoder: a decoder is the whole text model. Leave one of them out."
            )


def summary(artifact: "Artifact | DecoderArtifact") -> str:
    """An artifact in one line."""
    manifest = artifact.facts
    layers = f"{len(manifest.layers)} layers, " if isinstance(manifest, DecoderManifest) else ""
    padding = {(Manifest, True): ", padding", (DecoderManifest, False): ", no padding"}.get(
        (type(manifest), manifest.padding), ""
    )
    quantization = manifest.quantization
    bits = "" if quantization is None else f"weights int{quantization.bits}{_kept(manifest)}, "
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    return (
        f"{layers}lowering {manifest.lowering}, opset {manifest.opset}, {manifest.dtype}, "
        f"{bits}cache "
        f"{manifest.cache}{padding}, {size:.1f} MB"
    )


def _kept(manifest: "Manifest | DecoderManifest") -> str:
    """How many projections of a quantized source are kept in its own bits."""
    stored = [weight.stored for weight in manifest.weights.values() if weight.stored is not None]
    own = sum(origin.startswith("kept") for origin in stored)
    again = stored.count("requantized")
    if not own and not again:
        return ""
    return f" ({own} of {len(stored)} kept as the source has them)"

"""Engines: profiles, builds with the real builder, the folder, and what bad input leaves behind."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from rope_export import Artifact, build_engine, export, gpu, open_session, verify
from rope_export.artifacts import evidence
from rope_export.artifacts.saving import file_hash
from rope_export.cli import output, run
from rope_export.engines import build_cache, builder, module, static
from rope_export.engines.building import _capabilities
from rope_export.engines.plan import Engine, check_gpu, save
from rope_export.engines.profiles import DEFAULTS, Profile, Range, profiles_for, selected
from rope_export.errors import ArtifactError, InputError, UnavailableError
from rope_export.parity.engine.corners import corner_cases
from rope_export.parity.subject import Request
from rope_export.parity.subjects.engine import make_subject
from tests.cli.test_cli import refused, rewrite
from tests.support.gpus import with_gpu, without_gpu
from tests.support.plans import built as built_of

GROWING = "batch=1:1:3,sequence=1:8:32,past=0:0:64"
FIXED = "batch=1:1:3,sequence=1:8:16,capacity=24"
CAPABILITIES = ["8.0", "8.6", "8.9", "12.0"]
NO_TENSORRT = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the package tensorrt is installed"
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A build cache for all tests here: what one has built another needs not."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def users_cache(kept, monkeypatch) -> None:
    """The user's own is left alone."""
    monkeypatch.setenv("ROPE_EXPORT_CACHE", str(kept / "own"))


@pytest.fixture(scope="module")
def build(tiny, kept, tmp_path_factory) -> Callable[..., Engine]:
    """A new engine of a tiny layer, for a test to damage."""

    def make(kind: str = "growing", **options: object) -> Engine:
        words = (GROWING if kind == "growing" else FIXED,)
        given = {"profiles": words, "compute_capabilities": ["8.9"], "cache": kept, **options}
        source = given.pop("source", None) or tiny("tensorrt", "float16", kind)
        return build_engine(source, out=tmp_path_factory.mktemp("engine") / "it", **given)

    return make


def files(folder: Path) -> dict[str, str]:
    """Everything below a folder, by its hash."""
    return {
        str(path.relative_to(folder)): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------- profiles

BAD_PROFILES = {
    "min above opt": ("growing", "batch=2:1:8,sequence=1:8:32,past=0:0:64", "batch=2:1:8"),
    "opt above max": ("growing", "batch=1:9:8,sequence=1:8:32,past=0:0:64", "batch=1:9:8"),
    "an axis that is not there": ("growing", f"{GROWING},heads=4", "axis 'heads' does not exist"),
    "capacity of a growing cache": ("growing", f"{GROWING},capacity=9", "axis 'capacity'"),
    "past of a fixed cache": ("fixed", f"{FIXED},past=0:1:2", "axis 'past' does not exist"),
    "past below 0": ("growing", "batch=1,sequence=1,past=-1:0:4", "past starts at -1"),
    "no new token": ("growing", "batch=1,sequence=0:1:2,past=0", "sequence starts at 0"),
    "no row": ("growing", "batch=0,sequence=1,past=0", "batch starts at 0"),
    "beyond the capacity": ("fixed", "batch=1,sequence=1:8:25,capacity=24", "capacity of 24"),
    "a capacity that varies": ("fixed", "batch=1,sequence=1,capacity=8:16:24", "one number"),
    "an axis that is missing": ("growing", "batch=1,sequence=1:8:32", "'past' is missing"),
    "an axis given twice": ("growing", f"{GROWING},batch=1", "'batch' is given twice"),
    "a sum that follows": ("growing", f"{GROWING},total=1:2:3", "total follows"),
    "two sizes": ("growing", "batch=1:2,sequence=1,past=0", "batch=1:2 is neither"),
    "no number": ("growing", "batch=few,sequence=1,past=0", "batch=few is neither"),
    "no axis": ("growing", "prefill", "'prefill' is no axis"),
    "nothing": ("growing", "", "is no axis"),
    "too large": ("growing", "batch=1,sequence=1,past=0:0:3000000000", "past=3000000000"),
}


@pytest.mark.parametrize("fault", BAD_PROFILES)
def test_a_bad_profile_is_one_line_and_nothing_is_overwritten(
    fault, tiny, build, tmp_path, capsys
) -> None:
    cache, words, named = BAD_PROFILES[fault]
    out = Path(shutil.copytree(build().path, tmp_path / "engine"))
    before = files(out)
    source = str(tiny("tensorrt", "float16", cache).path)
    assert named in refused(capsys, "build", source, "--out", str(out), "--profile", words)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_profiles_must_agree_on_the_capacity(tiny) -> None:
    manifest = tiny("tensorrt", "float16", "fixed").manifest
    with pytest.raises(InputError, match="capacity is 24 and 48"):
        profiles_for(manifest, [FIXED, "batch=1,sequence=1,capacity=48"])
    with pytest.raises(InputError, match="given twice"):
        profiles_for(manifest, [FIXED, FIXED])


@pytest.mark.parametrize("cache", DEFAULTS)
def test_the_usual_profiles_take_prompts_and_single_tokens(tiny, cache) -> None:
    lowering = "tensorrt" if cache != "none" else "portable"
    manifest = tiny(lowering, "float16" if cache != "none" else "float32", cache).manifest
    profiles = profiles_for(manifest, ())
    kinds = ["prefill", "decode"] if cache != "none" else ["prefill"]
    assert [profile.kind for profile in profiles] == kinds
    sizes = {"batch": 1, "past": 0, "capacity": 2048}
    assert selected(profiles, sizes | {"sequence": 100}) == 0
    assert selected(profiles, sizes | {"sequence": 1}) == len(profiles) - 1


def test_a_corner_is_least_usual_or_one_axis_at_its_largest() -> None:
    profile = Profile(
        {
            name: Range(min=low, opt=opt, max=high)
            for name, (low, opt, high) in {
                "batch": (1, 2, 4),
                "sequence": (1, 1, 1),
                "past": (0, 5, 9),
            }.items()
        }
    )
    found = [tuple(corner.values()) for corner in profile.corners()]
    assert found == [(1, 1, 0), (2, 1, 5), (4, 1, 0), (1, 1, 9)]
    assert profile.range("total").max == profile.range("past + sequence").max == 10


def test_a_fixed_cache_is_judged_empty_and_full(build) -> None:
    engine = build("fixed")
    cases = corner_cases(engine.facts.profiles)
    assert {case.total + case.spare for case in cases} == {24}
    assert {case.past for case in cases if case.sequence == 16} == {0, 8}
    assert any(case.lengths and 0 in case.lengths for case in cases)


def test_corners_that_are_too_large_are_named(build, monkeypatch) -> None:
    engine = build()
    monkeypatch.setattr("rope_export.parity.subjects.engine.AFFORDABLE", 1000)
    subject = make_subject(engine, Request())
    assert [case.name for case in subject.corners if case.sequence == 32] == []
    assert any("1x32, past 0" in line and "`large`" in line for line in subject.left_out)
    assert not make_subject(engine, Request(large=True)).left_out


# --------------------------------------------------------------------------------- real builds


@pytest.fixture(scope="module")
def layer(smollm2, exported) -> Callable[[str, str], Artifact]:
    """SmolLM2's layer 0 with its real weights."""
    return lambda dtype, cache: exported(smollm2, lowering="tensorrt", dtype=dtype, cache=cache)


REAL = {
    "growing": (
        "batch=1:1:2,sequence=1:16:64,past=0:0:64",
        "batch=1:1:2,sequence=1,past=0:64:256",
    ),
    "fixed": ("batch=1:1:2,sequence=1:16:64,capacity=128", "batch=1:1:2,sequence=1,capacity=128"),
}


@without_gpu
@pytest.mark.parametrize("cache", REAL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_real_weights_become_a_fused_engine_that_passes_at_its_corners(
    layer, dtype, cache, tmp_path, kept, monkeypatch
) -> None:
    """For four kinds of GPU at once, with none here."""
    engine = build_engine(
        layer(dtype, cache),
        out=tmp_path / "engine",
        profiles=REAL[cache],
        compute_capabilities=CAPABILITIES,
        require_fused=True,
        cache=kept,
    )
    facts = engine.facts
    assert (facts.engine, facts.version) == ("tensorrt-rtx", module.load("tensorrt-rtx").version)
    assert facts.compute_capabilities == tuple(CAPABILITIES)
    assert (facts.fusion.fused, facts.fusion.reason) == (True, None)
    assert (facts.network.rotary, facts.network.attention) == (2, 1)
    assert facts.network.kv_cache_updates == (2 if cache == "fixed" else 0)
    capacity = {axis for t in facts.inputs for axis in t.shape if t.name == "key_cache"}
    assert cache == "growing" or 128 in capacity
    assert facts.files["engine.plan"].sha256 == file_hash(engine.plan)
    monkeypatch.setattr("rope_export.parity.subjects.layer.regular_cases", lambda *_, **__: [])
    monkeypatch.setattr("rope_export.parity.subjects.layer.layer_properties", lambda *_: [])
    report = verify(engine)
    ran = {row.runtime for row in report.rows} - {"eager", "file"}
    assert (report.status, report.weights, report.numbers) == ("passed", "proven", "unverified")
    assert ran == {"onnxruntime" if dtype == "float16" else "reference"}
    judged = {row.case for row in report.rows}
    full = ", cache full" if cache == "fixed" else ""
    assert {f"1x64, past {64 if full else 0}{full}", f"2x1, past {127 if full else 0}{full}"} <= (
        judged
    )


@pytest.mark.long
@pytest.mark.parametrize("cache", REAL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_real_weights_pass_at_the_corners_of_the_usual_profiles(
    layer, dtype, cache, tmp_path, kept
) -> None:
    report = verify(build_engine(layer(dtype, cache), out=tmp_path / "it", cache=kept), large=True)
    assert (report.status, report.left_out) == ("passed", [])


@pytest.mark.long
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("cache", REAL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_larger_heads_are_fused_too(dtype, cache, head_dim, tmp_path, kept) -> None:
    config = tmp_path / "config.json"
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    config.write_text(json.dumps({"model_type": "llama", "hidden_size": 512, **heads}))
    given = {"lowering": "tensorrt", "dtype": dtype, "cache": cache}
    artifact = export(config, out=tmp_path / "artifact", **given)
    engine = build_engine(artifact, out=tmp_path / "it", profiles=REAL[cache], cache=kept)
    assert engine.facts.fusion.fused


@with_gpu
@pytest.mark.parametrize("cache", REAL)
def test_numbers_of_real_weights_pass_on_the_gpu_that_is_here(
    layer, cache, tmp_path, kept, capsys
) -> None:
    engine = build_engine(
        layer("float16", cache),
        out=tmp_path / "engine",
        profiles=REAL[cache],
        engine="tensorrt-rtx",
        compute_capabilities=[gpu.here().capability],
        cache=kept,
    )
    assert verify(engine).numbers == f"passed on {gpu.here()}"
    assert run(["inspect", str(engine.path)]) == 0
    assert "numbers passed on" in " ".join(capsys.readouterr().out.split())


def test_the_three_scripts_lead_from_a_checkpoint_to_a_session(smollm2, tmp_path, kept) -> None:
    artifact, engine = str(tmp_path / "layer0"), str(tmp_path / "engine")

    def script(name: str, *arguments: str) -> str:
        command = [sys.executable, f"scripts/{name}.py", *arguments]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    export_options = ["--lowering", "tensorrt", "--dtype", "float16", "--no-verify"]
    script("export_onnx", str(smollm2), "--out", artifact, *export_options)
    told = script("build_engine", artifact, "--out", engine, "--cache", str(kept))
    assert "attention fused" in told
    assert "numbers unverified" in told
    cache = np.zeros((1, 3, 0, 64), np.float16)
    inputs = {"hidden_states": np.ones((1, 5, 576), np.float16), "position_ids": np.arange(5)[None]}
    with open_session(engine) as session:
        outputs = session.run(inputs | {"past_key": cache, "past_value": cache})
    assert outputs["present_key"].shape == (1, 3, 5, 64)


# ----------------------------------------------------------------------------------- the folder


def test_an_engine_has_no_proof_of_what_it_was_built_from(tmp_path) -> None:
    sample = Artifact.open(Path(__file__).parents[1] / "support" / "samples" / "v1" / "engine")
    artifact = Artifact.open(shutil.copytree(sample.path / "artifact", tmp_path / "artifact"))
    evidence.write(artifact.path, {"parity": {"status": "passed"}, "source": "/a/source"})
    made = save(tmp_path / "engine", artifact, sample.facts, sample.plan.read_bytes())
    for folder in (made, Artifact.open(made.path / "artifact")):
        assert folder.evidence == {"source": "/a/source"}


def test_without_capabilities_an_engine_is_for_the_gpu_that_is_here() -> None:
    """TensorRT itself cannot build ahead of time, and has no ComputeCapability."""
    here = module.Module(engine="tensorrt", trt=SimpleNamespace(__version__="10.15"))
    assert _capabilities(here, []) == ()
    with pytest.raises(InputError, match=r"8\.9: tensorrt builds for the GPU that is here"):
        _capabilities(here, ["8.9"])


@without_gpu
@pytest.mark.usefixtures("known_limits")
def test_an_engine_is_an_artifact_wherever_one_is_taken(build, capsys, monkeypatch) -> None:
    monkeypatch.setattr("rope_export.parity.subjects.layer.regular_cases", lambda *_, **__: [])
    monkeypatch.setattr("rope_export.parity.subjects.layer.layer_properties", lambda *_: [])
    engine = build()
    path = str(engine.path)
    assert isinstance(Artifact.open(path), Engine)
    assert type(Artifact.open(engine.path / "artifact")) is Artifact
    assert run(["verify", path]) == 0
    assert "numbers unverified: structure and ONNX proven" in capsys.readouterr().out
    assert engine.evidence["parity"]["numbers"] == "unverified"
    assert run(["inspect", path]) == 0
    shown = capsys.readouterr().out
    for words in (GROWING, "fused: True", "tensorrt-rtx", "numbers unverified"):
        assert words in shown
    assert run(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "engine"
    sizes = ["--batch", "1", "--sequence", "1", "--past", "8", "--rounds", "1", "--trust"]
    assert run(["bench", path, *sizes, "--only", engine.path.name]) == 0
    assert "not its plan but its ONNX model" in " ".join(capsys.readouterr().out.split())


@without_gpu
def test_doctor_names_modules_runtimes_and_the_gpu(capsys) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    builds = {row["engine"]: row["builds"] for row in facts["engines"]}
    assert builds["tensorrt-rtx"]
    reasons = {row["runtime"]: row["reason"] for row in facts["runtimes"]}
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx"):
        assert reasons[name]
    assert facts["gpu"] == f"none: {gpu.missing()}"


@with_gpu
def test_doctor_names_the_gpu_that_is_here(capsys) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["gpu"] == str(gpu.here())


@NO_TENSORRT
def test_doctor_says_what_to_install(capsys) -> None:
    assert run(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runtimes"]
    reasons = {row["runtime"]: row["reason"] for row in rows}
    assert "rope_export[tensorrt]" in reasons["tensorrt"]


def truncate(engine: Engine) -> None:
    engine.plan.write_bytes(engine.plan.read_bytes()[:-1000])


def flip(engine: Engine) -> None:
    plan = bytearray(engine.plan.read_bytes())
    plan[len(plan) // 2] ^= 1
    engine.plan.write_bytes(plan)


def edit(engine: Engine, **changes: object) -> None:
    path = engine.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_model(engine: Engine) -> None:
    """Another artifact in place of the one that the plan was built from, whole in itself."""
    inner = engine.path / "artifact"
    model = onnx.load(inner / "model.onnx")
    model.doc_string = "another"
    onnx.save(model, inner / "model.onnx")
    facts = json.loads((inner / "manifest.json").read_text())
    facts["files"]["model.onnx"]["sha256"] = file_hash(inner / "model.onnx")
    (inner / "manifest.json").write_text(json.dumps(facts))
    said = json.loads((engine.path / "manifest.json").read_text())
    said["files"]["artifact/manifest.json"]["sha256"] = file_hash(inner / "manifest.json")
    (engine.path / "manifest.json").write_text(json.dumps(said))


DAMAGE = {
    "truncated plan": (truncate, "engine.plan: does not match the sha256"),
    "changed plan": (flip, "engine.plan: does not match the sha256"),
    "no plan": (lambda e: e.plan.unlink(), "engine.plan: is missing"),
    "changed model": (
        lambda e: (e.path / "artifact/model.onnx").write_bytes(b"\0"),
        "model.onnx: does not match",
    ),
    "another model": (other_model, "built from another model"),
    "a format to come": (lambda e: edit(e, format_version=3), "format_version=3"),
    "half a manifest": (
        lambda e: edit(e, profiles=[{"batch": [1]}]),
        "profiles[0]['batch']=[1]: expected array",
    ),
    "no files": (lambda e: edit(e, files={}), "it lists []"),
}


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_damaged_engine_is_one_line(fault, command, build, capsys) -> None:
    damage, named = DAMAGE[fault]
    engine = build()
    damage(engine)
    before = files(engine.path)
    assert named in refused(capsys, command, str(engine.path))
    assert files(engine.path) == before


def test_a_plan_of_another_version_is_refused_with_what_to_rebuild(build, capsys) -> None:
    engine = build()
    edit(engine, version="1.6.0.10")
    before = files(engine.path)
    told = refused(capsys, "verify", str(engine.path))
    assert "built by tensorrt_rtx 1.6.0.10" in told
    assert f"--engine tensorrt-rtx --profile {GROWING}" in told
    with pytest.raises(ArtifactError, match=r"tensorrt_rtx==1\.6\.0\.10"):
        open_session(engine.path, "tensorrt-rtx")
    assert run(["inspect", str(engine.path)]) == 0  # to see what it is, and to take its model
    with open_session(engine.path) as session:
        assert session.manifest.lowering == "tensorrt"
    assert files(engine.path) == before


def test_a_plan_for_another_gpu_is_refused_with_what_to_rebuild(build) -> None:
    other = gpu.Gpu(name="RTX of paper", capability="12.0", driver="13.0")
    with pytest.raises(ArtifactError, match=r"is for compute capability 8\.9.*capability 12\.0"):
        check_gpu(None, build().facts, other)


def test_what_is_not_an_engine_is_kept(build, tiny, tiny_config, tmp_path, capsys) -> None:
    source = str(tiny("tensorrt", "float16", "growing").path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    artifact = Path(shutil.copytree(source, tmp_path / "artifact"))
    file = tmp_path / "file"
    file.write_text("mine")
    for out, named in ((mine, "'notes.txt'"), (artifact, "'model.onnx'"), (file, "is a file")):
        before = file_hash(out) if out.is_file() else files(out)
        assert named in refused(capsys, "build", source, "--out", str(out))
        assert before == (file_hash(out) if out.is_file() else files(out))
    engine = build()
    told = refused(capsys, "export", str(tiny_config), "--out", str(engine.path))
    assert "'artifact', which is not part of an artifact" in told


def test_an_engine_is_built_anew_from_its_own_folder(build, kept) -> None:
    engine = build()
    again = build_engine(engine.path, out=engine.path, profiles=[GROWING], cache=kept)
    assert again.facts.model == engine.facts.model
    assert again.facts.compute_capabilities != engine.facts.compute_capabilities


# ----------------------------------------------------------------------- options and the cache

OPTIONS = {
    "a capability that is none": (["--compute-capability", "9.0"], 2, "8.9, 12.0, 12.1"),
    "a level that is none": (["--optimization-level", "6"], 2, "0 to 5"),
    "a size that is none": (["--workspace", "12Q"], 2, "512M"),
    "no workspace": (["--workspace", "0"], 2, "at least one byte"),
    "a workspace too small": (["--workspace", "1K", "--no-cache"], 2, "larger --workspace"),
    "refit without a GPU": (["--refit"], 3, "needs a GPU"),
    "no lean runtime": (["--version-compatible", "--no-cache"], 2, "no lean runtime"),
    "a timing cache of none": (["--timing-cache", "t.cache"], 2, "measures no kernels"),
    "an engine that is none": (["--engine", "abacus"], 2, "tensorrt, tensorrt-rtx"),
    "an engine that is not here": (["--engine", "tensorrt"], 3, "rope_export[tensorrt]"),
    "two caches": (["--no-cache", "--cache", "x"], 2, "one of them"),
}


ABSENT = {"refit without a GPU": without_gpu, "an engine that is not here": NO_TENSORRT}


@pytest.mark.parametrize("fault", [pytest.param(x, marks=ABSENT.get(x, ())) for x in OPTIONS])
def test_an_option_that_cannot_be_met_is_one_line(fault, tiny, tmp_path, capfd) -> None:
    """Nor does native code write beside it."""
    words, status, named = OPTIONS[fault]
    source = str(tiny("tensorrt", "float16", "growing").path)
    profile = ["--profile", GROWING]
    assert run(["build", source, "--out", str(tmp_path / "out"), *profile, *words]) == status
    printed = capfd.readouterr()
    assert named in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


@with_gpu
def test_weights_can_be_exchanged_where_a_gpu_is(build) -> None:
    assert build(refit=True, engine="tensorrt-rtx").facts.options.refit


def test_native_code_is_silenced_and_python_is_not(capfd) -> None:
    """TensorRT's compiler writes some errors to stderr by itself, beside its logger."""
    with output.native_silenced():
        os.write(2, b"native\n")
        print("ours", file=sys.stderr)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ours\nafter\n"


def test_attention_that_is_not_fused_is_refused_with_what_helps(tiny, tmp_path, capsys) -> None:
    source = str(tiny("tensorrt", "float32", "growing").path)
    words = ["--out", str(tmp_path / "out"), "--profile", GROWING]
    told = refused(capsys, "build", source, *words, "--require-fused")
    assert "no attention kernel computes in float32" in told
    assert "export with dtype float16 or bfloat16" in told
    assert not list(tmp_path.iterdir())
    assert run(["build", source, *words]) == 0
    assert "attention NOT fused" in capsys.readouterr().out


def test_options_reach_the_builder(build) -> None:
    engine = build(weight_streaming=True, optimization_level=0, workspace=2**30, tf32=True)
    assert engine.facts.options.weight_streaming
    assert engine.facts.options.workspace == 2**30
    assert build().facts.options.tf32 is False


def test_a_second_build_does_not_build(build, monkeypatch) -> None:
    first = build()
    monkeypatch.setattr(builder, "build", lambda *_: pytest.fail("built again"))
    assert build().plan.read_bytes() == first.plan.read_bytes()


CHANGES: dict[str, dict[str, object]] = {
    "profile": {"profiles": ["batch=1:1:3,sequence=1:8:32,past=0:0:65"]},
    "capability": {"compute_capabilities": ["8.6"]},
    "option": {"tf32": True, "optimization_level": 1},
    "model": {"source": "other"},
    "version": {"version": "1.7.2.0"},
    "no cache": {"cache": False},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_differs_is_built(change, build, tiny, tmp_path, monkeypatch) -> None:
    build()
    seen = []
    real = builder.build
    monkeypatch.setattr(builder, "build", lambda *given: seen.append(1) or real(*given))
    options = dict(CHANGES[change])
    if options.pop("source", None):
        source = tiny("tensorrt", "float16", "growing").path
        copied = Path(shutil.copytree(source, tmp_path / "copied"))
        model = onnx.load(copied / "model.onnx")
        model.doc_string = "another"
        rewrite(copied, model)
        options["source"] = copied
    if version := options.pop("version", None):
        monkeypatch.setattr(module.Module, "version", property(lambda self: version))
    build(**options)
    assert seen == [1]


def test_a_damaged_entry_is_built_again(tiny, tmp_path) -> None:
    kept = tmp_path / "kept"
    options = {"profiles": [GROWING], "cache": kept}
    source = tiny("tensorrt", "float16", "growing")
    first = build_engine(source, out=tmp_path / "one", **options)
    (entry,) = kept.iterdir()
    (entry / "engine.plan").write_bytes(b"\0" * 100)
    second = build_engine(source, out=tmp_path / "two", **options)
    sizes = [engine.facts.files["engine.plan"].bytes for engine in (first, second)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)  # a plan is not the same in every build
    plan = hashlib.sha256((entry / "engine.plan").read_bytes()).hexdigest()
    assert json.loads((entry / "facts.json").read_text())["plan"] == plan


def test_writers_of_one_entry_leave_it_whole(tmp_path) -> None:
    built = built_of(b"plan" * 1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: build_cache.put(tmp_path, "key", built), range(32)))
    assert build_cache.get(tmp_path, "key") == built
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("ROPE_EXPORT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build_cache.location() == tmp_path / "xdg" / "rope_export" / "engines"
    monkeypatch.setenv("ROPE_EXPORT_CACHE", str(tmp_path / "own"))
    assert build_cache.location() == tmp_path / "own" / "engines"
    file = tmp_path / "file"
    file.write_text("mine")
    built = built_of(b"")
    with pytest.raises(FileExistsError):
        build_cache.put(file, "key", built)
    assert file.read_text() == "mine"


def test_fixing_an_axis_leaves_the_rest(tiny, tmp_path) -> None:
    artifact = tiny("tensorrt", "float16", "fixed")
    static.fix_axes(artifact.model, {"capacity": 24}, tmp_path / "fixed.onnx")
    model = onnx.load(tmp_path / "fixed.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["key_cache"] == shapes["value_cache_out"] == ["batch", 2, 24, 16]
    assert shapes["hidden_states"] == ["batch", "sequence", 64]
    with pytest.raises(InputError, match="no input has an axis 'past'"):
        static.fix_axes(artifact.model, {"past": 4}, tmp_path / "other.onnx")


def test_a_module_that_does_not_load_says_so(monkeypatch, tmp_path) -> None:
    """As the packages that hold only a stub, or whose libraries are missing."""
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"does not load \(libnvinfer.so.11"):
        module.load("tensorrt")
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.13.0'")
    with pytest.raises(UnavailableError, match=r"tensorrt 10\.13\.0 has no IAttention; upgrade"):
        module.load("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt")

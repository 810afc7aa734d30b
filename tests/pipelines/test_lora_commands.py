"""`python -m pipelines lora ...` on the real TinyWan, its students and small files."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.__main__ import main
from pipelines.lora.apply import apply_adapters
from pipelines.lora.export import TARGETS, Target, write_lora
from pipelines.lora.file import Lora, read_lora
from pipelines.recipe import Adapter
from tests.pipelines.conftest import velocity
from tests.pipelines.test_lora_flavours import changed, lightx2v

STUDENT = Path("assets/students/tiny-dmd4/lora.safetensors")
GUIDED = Path("assets/students/tiny-cfg/lora.safetensors")


def with_biases(path: Path) -> Path:
    """What diffusers has room for: factors, a bias, and the difference of a small weight."""
    lora = read_lora(lightx2v(path.with_name("all.safetensors")))
    kept = ("blocks.0.attn1.to_q.bias", "patch_embedding.weight")
    draw = torch.Generator().manual_seed(5)
    deltas = {name: lora.deltas[name] for name in kept}
    deltas["proj_out.weight"] = torch.randn(64, 32, generator=draw) / 4
    write_lora(Lora(lora.down, lora.up, {"proj_out": 2.0}, deltas=deltas), path, "lightx2v")
    return path


def test_info_counts_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "info", str(STUDENT), "--base", "tiny-wan"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "diffusers: 80 of 80 layers, rank 8",
        "alpha: 8",
        "sampler: lcm 4 steps, shift 3, no guidance",
    ]


def test_info_tells_of_a_lora_for_a_model_of_another_size(
    models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lora", "info", str(STUDENT), "--models", str(models_dir), "--base", "mini"]) == 2
    assert "was made for another model: " in capsys.readouterr().err


def test_a_merged_folder_is_a_model_here_and_in_stock_diffusers(
    models_dir: Path, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    lora = lightx2v(tmp_path / "a.safetensors")
    out = tmp_path / "new" / "merged"
    command = ["lora", "merge", "mini", str(out), "--models", str(models_dir)]
    assert main([*command, "--lora", f"{lora}:0.5", "--lora-alpha", "6"]) == 0
    expected = changed(models_dir / "mini" / "transformer", 0.5 * 6 / 4, 0.5)
    stock = WanPipeline.from_pretrained(out)
    torch.testing.assert_close(velocity(stock.transformer), expected, atol=1e-5, rtol=0)
    spec = json.loads((out / "sampler.json").read_text())
    assert spec["sampler"]["num_inference_steps"] == 3
    clip = ["generate", "--model", str(out), "--prompt", "a red circle", "--steps", "1"]
    assert main([*clip, "--out", str(tmp_path / "clip.mp4")]) == 0
    assert main([*command, "--lora", str(lora)]) == 2  # never over a folder that is there


def test_a_base_in_wans_own_layout_is_merged_alike(models_dir: Path, tmp_path: Path) -> None:
    lora, native = lightx2v(tmp_path / "a.safetensors"), tmp_path / "native"
    models = ["--models", str(models_dir)]
    assert main(["convert", "mini", str(native), "--to", "native", *models]) == 0
    for base, out in (("mini", "one"), (str(native), "other")):
        command = ["lora", "merge", base, str(tmp_path / out), *models, "--lora", str(lora)]
        assert main(command) == 0
    one, other = (
        WanPipeline.from_pretrained(tmp_path / out).transformer.state_dict()
        for out in ("one", "other")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failed_merge_leaves_nothing(models_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    command = ["lora", "merge", "mini", str(out), "--models", str(models_dir)]
    assert main([*command, "--lora", str(STUDENT)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_merged_student_keeps_its_sampler_and_its_guidance_embedder(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["lora", "merge", "tiny-wan", str(out), "--lora", str(GUIDED)]) == 0
    sampler = json.loads((out / "sampler.json").read_text())["sampler"]
    assert sampler["guidance_mode"] == "embedded"
    clip = ["generate", "--model", str(out), "--prompt", "a red circle", "--steps", "1"]
    assert main([*clip, "--out", str(tmp_path / "clip.mp4")]) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_an_export_of_a_student_holds_the_same_change_with_its_alpha_and_sampler(
    target: Target, tmp_path: Path
) -> None:
    out = tmp_path / "export.safetensors"
    assert main(["lora", "export", str(STUDENT), str(out), "--to", target]) == 0
    before, after = read_lora(STUDENT), read_lora(out)
    assert len(after.down) == 80
    assert after.alphas == before.alphas == dict.fromkeys(after.down, 8.0)
    for layer in before.down:
        assert torch.equal(before.product(layer), after.product(layer))
    alphas = [name for name in load_file(out) if name.endswith(".alpha")]
    assert len(alphas) == (0 if target == "diffusers" else 80)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["sampler"])["num_inference_steps"] == 4


def test_stock_diffusers_makes_the_pixels_of_the_student_from_its_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "export.safetensors"
    assert main(["lora", "export", str(STUDENT), str(out), "--to", "diffusers"]) == 0
    assert main(["lora", "verify", str(STUDENT), str(out), "--base", "tiny-wan"]) == 0
    told = capsys.readouterr().out
    assert "within the bound of 0.0039" in told
    assert "read by stock diffusers, 4 steps" in told


def test_verify_ends_with_1_where_the_pixels_differ(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (lightx2v(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    command = ["lora", "verify", str(one), str(other), "--models", str(models_dir)]
    assert main([*command, "--base", "mini"]) == 1
    assert "BEYOND the bound" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["comfyui", "lightx2v"])
def test_all_kinds_of_deltas_survive_an_export_on_wans_own_names(
    target: Target, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    source, out = lightx2v(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert main(["lora", "export", str(source), str(out), "--to", target]) == 0
    apply_adapters(transformer, [Adapter(path=str(source))])
    expected = velocity(transformer)
    apply_adapters(transformer, [Adapter(path=str(out))])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-6, rtol=0)
    name = {"comfyui": "modulation.diff", "lightx2v": "diff_m"}[target]
    assert f"diffusion_model.blocks.1.{name}" in load_file(out)


def test_stock_diffusers_reads_biases_and_small_weights_of_an_export(
    models_dir: Path, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    source, out = with_biases(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert main(["lora", "export", str(source), str(out), "--to", "diffusers"]) == 0
    apply_adapters(transformer, [Adapter(path=str(source))])
    expected = velocity(transformer)
    apply_adapters(transformer, [Adapter(path=str(out))])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)
    pipeline = WanPipeline.from_pretrained(models_dir / "mini")
    pipeline.load_lora_weights(out)
    torch.testing.assert_close(velocity(pipeline.transformer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lightx2v, "changes 6 parameters that diffusers has no place for"),
        (lambda path: GUIDED, "brings a guidance embedder, which diffusers has no place for"),
    ],
)
def test_what_diffusers_has_no_place_for_is_not_lost_silently(
    write: "object", message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.safetensors")  # type: ignore[operator]
    out = tmp_path / "b.safetensors"
    assert main(["lora", "export", str(source), str(out), "--to", "diffusers"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_extract_gives_back_what_was_merged(
    models_dir: Path, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    lora = lightx2v(tmp_path / "a.safetensors")
    out, folder = tmp_path / "extracted.safetensors", tmp_path / "tuned"
    models = ["--models", str(models_dir)]
    main(["lora", "merge", "mini", str(folder), *models, "--lora", str(lora)])
    command = ["lora", "extract", str(folder), "mini", str(out), *models, "--rank", "4"]
    assert main(command) == 0
    apply_adapters(transformer, [Adapter(path=str(out))])
    expected = changed(models_dir / "mini" / "transformer", 1.0, 1.0)
    # the factors are stored in fp16
    torch.testing.assert_close(velocity(transformer), expected, atol=2e-3, rtol=0)
    extracted = read_lora(out)
    assert extracted.deltas.keys() == read_lora(lora).deltas.keys()
    assert set(extracted.alphas.values()) == {4.0}


def test_an_extract_of_two_equal_or_unlike_models_is_refused(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "extracted.safetensors"
    for tuned, message in [("mini", "are equal"), ("tiny-wan", "differ at")]:
        command = ["lora", "extract", tuned, "mini", str(out), "--models", str(models_dir)]
        assert main([*command, "--rank", "4"]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()

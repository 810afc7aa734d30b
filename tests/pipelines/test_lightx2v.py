import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.commands.import_lightx2v import read_config, student_sampler
from pipelines.sampling.flow import sigma_schedule
from pipelines.video import read_recipe
from tests.pipelines.test_lora_flavours import lightx2v

# The fields of LightX2V's configs/distill/wan21/wan_t2v_distill_lora_4step_cfg.json.
DISTILLED: dict[str, object] = {
    "infer_steps": 4,
    "target_video_length": 81,
    "text_len": 512,
    "target_height": 480,
    "target_width": 832,
    "self_attn_1_type": "flash_attn3",
    "sample_guide_scale": 6,
    "sample_shift": 5,
    "enable_cfg": False,
    "cpu_offload": False,
    "denoising_step_list": [1000, 750, 500, 250],
}
SMALL = {"target_video_length": 5, "target_height": 32, "target_width": 32, "text_len": 12}


def config_file(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(DISTILLED | changes))
    return path


def test_the_step_list_gives_the_levels_of_lightx2v(tmp_path: Path) -> None:
    sampler = student_sampler(read_config(config_file(tmp_path)))
    assert (sampler.name, sampler.guidance_mode, sampler.guidance_scale) == ("euler", "off", 1)
    levels = sigma_schedule(sampler.num_inference_steps, sampler.flow_shift, sampler.sigmas)
    # its table: linspace(1, 0) of 1000 points without the end, shifted, at index 1000 - step
    table = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    table = 5 * table / (1 + 4 * table)
    expected = [*(table[1000 - step].item() for step in (1000, 750, 500, 250)), 0.0]
    assert expected[:4] == pytest.approx([1, 0.9375, 0.8333, 0.625], abs=1e-4)
    assert levels.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "mode", "scale"),
    [
        ({"enable_dynamic_cfg": True, "cfg_scale": 4.0}, "embedded", 4.0),
        ({"enable_cfg": True, "denoising_step_list": None}, "two_pass", 6.0),
    ],
)
def test_guidance_is_what_the_configuration_turns_on(
    changes: dict[str, object], mode: str, scale: float, tmp_path: Path
) -> None:
    sampler = student_sampler(read_config(config_file(tmp_path, **changes)))
    assert (sampler.guidance_mode, sampler.guidance_scale) == (mode, scale)
    assert sampler.name == ("unipc" if changes.get("enable_cfg") else "euler")


@pytest.mark.parametrize("strengths", [(1.0,), (0.5, -0.25)])
def test_a_configuration_with_loras_becomes_a_model_that_makes_clips(
    strengths: tuple[float, ...], models_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "models"
    mine.mkdir()
    loras = [
        lightx2v(tmp_path / f"{seed}.safetensors", seed) for seed, _ in enumerate(strengths, 1)
    ]
    listed = [
        {"path": f"hub/{p.name}", "strength": s} for p, s in zip(loras, strengths, strict=True)
    ]
    config = config_file(tmp_path, **SMALL, lora_configs=listed)
    models = ["--models", str(models_dir), "--models", str(mine)]
    command = ["import-lightx2v", str(config), str(mine / "fast"), "--base", "mini", *models]
    assert main(command) == 0
    entry = Registry([models_dir, mine]).entry("fast")
    assert (entry.base, entry.missing) == ("mini", None)
    stored = load_file(mine / "fast" / "lora.safetensors")
    assert len([name for name in stored if name.endswith(".lora_down.weight")]) == 7
    clip = ["generate", "--model", "fast", "--prompt", "a red circle", *models]
    assert main([*clip, "--out", str(tmp_path / "clip.mp4")]) == 0
    recipe = read_recipe(tmp_path / "clip.mp4")
    assert recipe.sampler.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert (recipe.width, recipe.num_frames, recipe.sampler.flow_shift) == (32, 5, 5)
    assert main(command) == 2  # never over what is there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary_step_index": 2}, "two experts of Wan2.2 (boundary_step_index)"),
        (
            {"lora_configs": [{"path": "a.safetensors", "name": "high_noise_model"}]},
            "two experts of Wan2.2",
        ),
        ({"infer_steps": 8}, "num_inference_steps is 8 but sigmas lists 4 levels"),
        ({"infer_steps": "many"}, "infer_steps"),
        ({"feature_caching": "Tea"}, "feature_caching is Tea and changes the picture"),
        ({"lora_configs": [{"path": "a/b.safetensors"}]}, "a/b.safetensors is not here"),
        ({"enable_dynamic_cfg": True}, "cfg_scale is missing"),
        ({}, "the configuration lists no lora_configs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_nothing_is_written(
    changes: dict[str, object],
    message: str,
    models_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    config = config_file(tmp_path, **changes)
    command = ["import-lightx2v", str(config), str(out), "--base", "mini"]
    if "cfg_scale" in message or "sigmas" in message:
        lora = lightx2v(tmp_path / "a.safetensors")
        config_file(tmp_path, **changes, lora_configs=[{"path": lora.name}])
    assert main([*command, "--models", str(models_dir)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()

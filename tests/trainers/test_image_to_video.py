"""Training on models that continue images: every method, both data sources, validation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.catalog.registry import Registry
from pipelines.model_cache import ModelCache
from pipelines.sampling.denoiser import Denoiser
from pipelines.video import read_recipe, read_video, write_video
from tests.pipelines.test_image_condition import save_image_model
from tests.trainers.data import write_prepared
from tests.trainers.runs import read_jsonl, trainer
from tests.trainers.test_engine import GAN, LORA, own_roles
from trainers.__main__ import main
from trainers.data.batches import build_data
from trainers.data.prepared import PreparedFolder, PreparedSample
from trainers.estimate.costs import count_runs, stand_ins
from trainers.estimate.estimate import _skeleton
from trainers.networks.models import Codecs, load_models
from trainers.registry import build_config, methods, read_tree

SHAPE = (16, 2, 4, 4)
PROMPT = "a red circle moving left"


@pytest.fixture(scope="session")
def image_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, and `clip`, whose network also reads an image encoder; 32x32, 5 frames."""
    folder = tmp_path_factory.mktemp("image-models")
    for name in ("plain", "clip"):
        save_image_model(folder / name, with_clip=name == "clip")
        spec = json.loads((folder / name / "sampler.json").read_text())
        (folder / name / "sampler.json").write_text(json.dumps(spec | {"width": 32}))
    return folder


def write_data(folder: Path, with_clip: bool) -> Path:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    samples = []
    for number in range(4):
        tensors = {"latents": draw(*SHAPE), "prompt_embeds": draw(3, 16)}
        tensors["image_latents"] = draw(*SHAPE)
        if with_clip:
            tensors["image_embeds"] = draw(5, 8)
        samples.append(PreparedSample(f"caption {number}", SHAPE, tensors))
    write_prepared(folder, samples, draw(1, 16), 512)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tree(config_tree, image_models: Path, tmp_path: Path):
    """name of the model, method, settings -> a valid two-step configuration."""

    def build(name: str, method: str, **settings: Any) -> dict[str, Any]:
        data = write_data(tmp_path / f"data-{name}", with_clip=name == "clip")
        own: dict[str, Any] = {
            "model": str(image_models / name),
            "data": {"source": "prepared", "folder": str(data), "batch_size": 2},
            "num_steps": 2,
            "algorithm": own_roles(method),
        }
        return config_tree(method, **own | settings)

    return build


CONTRACTS = [(m, "plain", own_roles(m)) for m in methods() if m != "autoencoder"]
CONTRACTS += [("dmd2", "clip", own_roles("dmd2", lora={"rank": 2}) | GAN)]


@pytest.mark.parametrize(("method", "name", "algorithm"), CONTRACTS)
def test_every_method_learns_on_images(
    method: str, name: str, algorithm: dict[str, Any], tree, tmp_path: Path
) -> None:
    run = trainer(build_config(tree(name, method, algorithm=algorithm)), tmp_path / "run")
    before = {n: p.detach().clone() for n, p in run.roles["student"].trained.items()}
    assert run.train()
    losses = [line["student/loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(np.isfinite(loss) for loss in losses)
    trained = run.roles["student"].trained
    assert any(not torch.equal(before[n], p) for n, p in trained.items())


def test_the_loss_depends_on_the_image_of_each_sample(tree, tmp_path: Path) -> None:
    run = trainer(build_config(tree("plain", "finetune")), tmp_path / "run")
    batch = run.data.batch(0, 0, 1)
    image = batch.require("prompt").image
    assert image is not None
    seen: list[torch.Tensor] = []
    network = run.roles["student"].network
    network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    run.algorithm.flow_loss(batch, run._rng(0, 0))
    assert torch.equal(seen[0][:, 20:], image.image_latents)
    assert not torch.equal(seen[0][0, 20:], seen[0][1, 20:])


def test_prepare_stores_what_sampling_reads_of_a_first_frame_and_training_reads_that(
    image_models: Path, tree, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).random((2, 1, 8, 12, 3)).repeat(4, 2).repeat(4, 3)
    for number, picture in enumerate(noise):
        write_video(tmp_path / "videos" / f"{number}.mp4", picture.repeat(5, 0), fps=8)
        (tmp_path / "videos" / f"{number}.txt").write_text(PROMPT)
    model, out = str(image_models / "clip"), tmp_path / "data"
    command = ["prepare", str(tmp_path / "videos"), str(out), "--model", model]
    assert main([*command, "--size", "48x32", "--frames", "5"]) == 0
    stored = [PreparedFolder(out).read(number) for number in range(2)]
    assert [sample["image_embeds"].shape for sample in stored] == [(5, 8)] * 2

    registry = Registry([image_models])
    models = ModelCache(registry, "cpu")
    for number, sample in enumerate(stored):
        first = np.rint(read_video(tmp_path / "videos" / f"{number}.mp4")[0] * 255)
        Image.fromarray(first.astype(np.uint8)).save(tmp_path / "first.png")
        recipe = registry.recipe("clip", PROMPT, image=tmp_path / "first.png", width=48)
        entry = registry.entry("clip")
        components = models.components(recipe, entry)
        condition = models.inputs(recipe, entry, components).prompt.image
        assert condition is not None
        for name in ("image_embeds", "image_latents"):
            read = getattr(condition, name)[0]
            torch.testing.assert_close(sample[name].float(), read, atol=2e-3, rtol=2e-3)
    apart = stored[0]["image_embeds"].float() - stored[1]["image_embeds"].float()
    assert apart.abs().max() > 0.1, "as if nothing of the image were read"

    data = {"source": "prepared", "folder": str(out), "batch_size": 2}
    run = trainer(build_config(tree("clip", "finetune", data=data)), tmp_path / "run")
    seen: list[torch.Tensor] = []
    run.roles["student"].network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states_image"]),
        with_kwargs=True,
    )
    run.algorithm.flow_loss(run.data.batch(0, 0, 1), run._rng(0, 0))
    expected = torch.stack([sample["image_embeds"] for sample in stored]).float()
    (both,) = seen
    order = [0, 1] if torch.equal(both[0], expected[0]) else [1, 0]
    assert torch.equal(both, expected[order])


def test_data_without_first_frames_are_refused(tree, tmp_path: Path) -> None:
    config = tree("plain", "finetune")
    sample = PreparedSample(
        "a", SHAPE, {"latents": torch.zeros(SHAPE), "prompt_embeds": torch.zeros(1, 16)}
    )
    write_prepared(tmp_path / "bare", [sample], torch.zeros(1, 16), 512)
    config["data"]["folder"] = str(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"^data\.folder: .* without first frames"):
        trainer(build_config(config), tmp_path / "run")


def test_a_text_model_does_not_read_first_frames_that_are_there(
    whole_model: Path, tree, tmp_path: Path
) -> None:
    config = build_config(tree("plain", "finetune", model=str(whole_model)))
    source = build_data(config, Codecs(Registry().entry(config.model), torch.device("cpu")))
    assert source.batch(0, 0, 1).require("prompt").image is None


def listed(folder: Path, image: Path) -> dict[str, Any]:
    lines = [json.dumps({"prompt": f"a red circle {n}", "image": image.name}) for n in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return {"source": "prompts", "file": str(folder / "prompts.jsonl"), "batch_size": 2}


def test_prompts_with_images_train_without_videos(tree, photo: Path, tmp_path: Path) -> None:
    config = build_config(tree("clip", "dmd2", data=listed(tmp_path, photo)))
    codecs = Codecs(Registry().entry(config.model), torch.device("cpu"))
    batch = build_data(config, codecs).batch(0, 0, 1)
    image = batch.require("prompt").image
    assert image is not None
    assert image.image_latents.shape == (2, *SHAPE)
    assert image.image_embeds.shape == (2, 5, 8)
    assert trainer(config, tmp_path / "run").train()


def test_a_list_that_does_not_fit_the_model_is_refused_in_one_sentence(
    tree, whole_model: Path, photo: Path, tmp_path: Path
) -> None:
    images = listed(tmp_path, photo)
    (tmp_path / "prompts.txt").write_text(PROMPT)
    text = images | {"file": str(tmp_path / "prompts.txt")}
    for settings, sentence in (
        ({"data": text}, r"^data\.file: .* reads an image with each prompt; name a \.jsonl"),
        ({"data": images, "model": str(whole_model)}, r"^data\.file: .* reads nothing but"),
    ):
        config = build_config(tree("plain", "dmd2", **settings))
        with pytest.raises(ValueError, match=sentence):
            build_data(config, Codecs(Registry().entry(config.model), torch.device("cpu")))
    photo.unlink()
    config = build_config(tree("plain", "dmd2", data=images))
    with pytest.raises(ValueError, match=r"^data\.file: entry 1 of .* which is not there"):
        build_data(config, Codecs(Registry().entry(config.model), torch.device("cpu")))


def test_validation_continues_the_images_it_is_given(tree, photo: Path, tmp_path: Path) -> None:
    validation = {"every": 2, "prompts": [PROMPT], "images": [str(photo)], "seeds": [0]}
    config = tree("plain", "cfg_distill", validation=validation)
    assert trainer(build_config(config), tmp_path / "run").train()
    for folder in ("teacher", "step_000002"):
        image = read_recipe(tmp_path / "run" / "samples" / folder / "00-seed0.mp4").image
        assert image is not None
        assert image.path == str(photo)
    del validation["images"]
    with pytest.raises(ValueError, match=r"^validation\.images: image is missing"):
        trainer(build_config(config), tmp_path / "other")


def test_the_presets_for_wan_itself_are_of_the_published_size() -> None:
    for preset in ("wan14b_i2v_cfg", "wan14b_i2v_dmd2"):
        config = build_config(read_tree(Path(f"presets/train/{preset}.yaml")))
        with torch.device("meta"):
            network = load_models(config, Registry(), _skeleton)[""].network
        assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(16.395, abs=5e-3)


def test_a_plan_counts_the_forwards_with_an_image(tree, tmp_path: Path) -> None:
    config = build_config(tree("clip", "dmd2"))
    registry = Registry()
    sampler = registry.entry(config.model).preset.sampler
    runs = count_runs(config, stand_ins(load_models(config, registry)), sampler)
    assert runs["critic"].num_backwards == 1


def test_an_average_of_a_lora_student_exports_and_continues_images(
    tree, photo: Path, tmp_path: Path
) -> None:
    run = trainer(build_config(tree("plain", "finetune", algorithm=LORA)), tmp_path / "run")
    run.train()
    spec = json.loads((tmp_path / "run" / "export" / "sampler.json").read_text())
    assert spec["image_preprocessing"] == "diffusers"
    assert Denoiser(run.roles["student"].network).takes_image

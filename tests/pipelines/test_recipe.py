from typing import get_args

import pytest
from pydantic import ValidationError

from pipelines.geometry import Geometry
from pipelines.recipe import SOLVERS, Adapter, Recipe, SamplerName, SamplerSpec
from pipelines.strict import explain


def recipe(**fields: object) -> Recipe:
    return Recipe.model_validate({"model": "tiny-wan", "prompt": "a", **fields})


def problem(**fields: object) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(**fields)
    return explain(caught.value)


def test_a_recipe_survives_json_and_keeps_its_key() -> None:
    one = recipe(seed=3, adapters=[{"path": "a.safetensors", "strength": 0.5}], width=64)
    again = Recipe.model_validate_json(one.to_json())
    assert again == one
    assert again.key() == one.key()
    assert len(one.key()) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"prompt": "b"},
        {"width": 64},
        {"model_fingerprint": "0"},
        {"sampler": {"flow_shift": 3.0}},
        {"adapters": [Adapter(path="a.safetensors")]},
    ],
)
def test_whatever_changes_the_video_changes_the_key(change: dict[str, object]) -> None:
    assert recipe(**change).key() != recipe().key()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 100}, "width is 100 but must be a multiple of 16; try 96"),
        ({"height": 17}, "height is 17 but must be a multiple of 16; try 16"),
        ({"num_frames": 16}, "num_frames is 16 but must be 4n+1; try 17"),
        ({"num_frames": 4}, "num_frames is 4 but must be 4n+1; try 5"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, not -1"),
        ({"promt": "b"}, "promt: is not a known setting; check the spelling"),
        (
            {"sampler": {"sigmas": [1.0, 0.5], "num_inference_steps": 3}},
            "sampler: num_inference_steps is 3 but sigmas lists 2 levels",
        ),
        ({"sampler": {"sigmas": [0.5, 1.0]}}, "sampler: sigmas must descend"),
        ({"sampler": {"name": "ddim"}}, "sampler.name: Input should be 'unipc', 'euler' or 'lcm'"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(fields: dict[str, object], message: str) -> None:
    sentence = problem(**fields)
    assert sentence.startswith(message)
    assert "\n" not in sentence


def test_forwards_and_latents_are_counted_as_wan_does() -> None:
    guided = recipe(sampler={"num_inference_steps": 50, "guidance_scale": 5.0})
    assert guided.num_forwards == 100
    assert guided.latent_shape(Geometry()) == (16, 21, 60, 104)  # 81 frames of 832x480
    assert guided.num_tokens(Geometry()) == 21 * 30 * 52
    plain = recipe(sampler={"num_inference_steps": 4, "guidance_scale": 1.0}, num_frames=1)
    assert plain.num_forwards == 4
    assert plain.latent_shape(Geometry()) == (16, 1, 60, 104)


@pytest.mark.parametrize(
    ("mode", "guidance_scale", "works"),
    [("off", 5.0, False), ("off", 1.0, True), ("two_pass", 5.0, True)],
)
def test_guidance_on_a_guidance_free_student_is_a_problem(
    mode: str, guidance_scale: float, works: bool
) -> None:
    spec = SamplerSpec.model_validate({"guidance_mode": mode, "guidance_scale": guidance_scale})
    assert (spec.problem() is None) == works


def test_memory_is_part_of_the_key_where_it_is_not_plain() -> None:
    assert recipe(memory="plain").key() == recipe().key()
    assert "memory" not in recipe().to_json()
    assert len({recipe(memory=words).key() for words in ("plain", "fit", "vae=bf16")}) == 3


def test_every_solver_has_a_name_for_people() -> None:
    assert tuple(SOLVERS) == get_args(SamplerName)

"""Roles with own weights or on one shared base: what each holds, and what moves it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from pipelines.catalog.registry import Registry
from pipelines.lora.file import Lora
from pipelines.sampling.prompt import Prompt
from tests.trainers.runs import trainer
from trainers.algorithms import dmd2
from trainers.networks.build import build_roles
from trainers.networks.models import LoadedModel, load_models
from trainers.networks.role import BuiltRole, follow

RANK = {"lora": {"rank": 2, "alpha": 4}}
SHARED = {"student": RANK, "critic": RANK, "ema": {"decay": 0.75}}
Roles = dict[str, BuiltRole]


def transformer(seed: int = 0, **changes: int) -> WanTransformer3DModel:
    """A micro Wan: equal seeds give equal weights."""
    sizes = {"attention_head_dim": 16, "freq_dim": 32, "ffn_dim": 48, "num_layers": 2}
    torch.manual_seed(seed)
    return WanTransformer3DModel(**{"num_attention_heads": 2, "text_dim": 16} | sizes | changes)


def build(
    settings: dict[str, Any], base: LoadedModel | None = None, **others: LoadedModel
) -> Roles:
    """The roles of DMD2 on a base; `others` are the models that the settings name."""
    models = {"": base or LoadedModel(transformer())} | others
    torch.manual_seed(0)
    return build_roles(dmd2.Config.model_validate(settings), models)


def lora(seed: int = 0) -> Lora:
    """A LoRA of rank 2 and alpha 4 for the self-attention's queries."""
    generator = torch.Generator().manual_seed(seed)
    layers = [f"blocks.{block}.attn1.to_q" for block in range(2)]
    down, up = (
        {layer: torch.randn(shape, generator=generator) / 4 for layer in layers}
        for shape in ((2, 32), (32, 2))
    )
    return Lora(down, up, dict.fromkeys(layers, 4.0), {})


def inputs() -> tuple[Tensor, Tensor, Prompt]:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 16, 2, 4, 4, generator=generator)
    return noisy, torch.tensor([0.3, 0.9]), Prompt(torch.randn(2, 12, 16, generator=generator))


def velocity(role: BuiltRole) -> Tensor:
    found: Tensor = role.call.velocity(*inputs())  # type: ignore[operator]
    return found


@torch.no_grad()
def scatter(role: BuiltRole, seed: int = 1) -> None:
    """Moves all that the role trains somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in role.trained.values():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def values(role: BuiltRole) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in role.own_parameters.values()]


# ---------------------------------------------------------------- one base


def test_roles_on_one_base_start_as_the_teacher_and_then_go_their_own_ways() -> None:
    roles = build(SHARED)
    assert len({id(role.network) for role in roles.values()}) == 1
    with torch.no_grad():
        start = velocity(roles["teacher"])
        assert all(torch.equal(velocity(role), start) for role in roles.values())
        scatter(roles["student"], seed=1)
        scatter(roles["critic"], seed=2)
        student, critic = velocity(roles["student"]), velocity(roles["critic"])
        assert torch.equal(velocity(roles["teacher"]), start)
        assert torch.equal(velocity(roles["student"]), student)  # the others left no trace
    assert (student - start).abs().max() > 1e-3
    assert (student - critic).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapter_of_the_forward_is_on_in_its_backward(checkpointing: bool) -> None:
    roles = build(SHARED)
    scatter(roles["student"], seed=1)
    scatter(roles["critic"], seed=2)
    velocity(roles["student"]).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in roles["student"].trained.items()}
    roles["student"].network.zero_grad()
    if checkpointing:  # runs each block again in backward
        roles["student"].network.train().enable_gradient_checkpointing()
    loss = velocity(roles["student"]).square().sum()
    velocity(roles["critic"])  # another adapter is on when the gradient comes
    loss.backward()
    for name, parameter in roles["student"].trained.items():
        torch.testing.assert_close(parameter.grad, expected[name])
    assert all(parameter.grad is None for parameter in roles["critic"].trained.values())
    assert roles["student"].call.switch.active == "student"  # type: ignore[union-attr]


def test_only_the_trained_adapters_take_gradients() -> None:
    roles = build(SHARED)
    trained = {name for name, role in roles.items() if role.trained}
    assert trained == {"student", "critic"}
    takes = [n for n, p in roles["teacher"].network.named_parameters() if p.requires_grad]
    assert takes
    assert all(".student." in name or ".critic." in name for name in takes)


# ---------------------------------------------------------------- own weights, and starts


def test_roles_with_own_weights_hold_copies_of_their_own() -> None:
    roles = build({"student": {}, "critic": {}, "ema": {}})
    held = [{p.data_ptr() for p in role.network.parameters()} for role in roles.values()]
    assert all(not one & other for one, other in itertools.combinations(held, 2))
    before = {name: values(roles[name]) for name in ("teacher", "critic", "ema")}
    scatter(roles["student"])
    for name, tensors in before.items():
        assert all(map(torch.equal, tensors, values(roles[name])))
    assert not any(parameter.requires_grad for parameter in roles["teacher"].network.parameters())


def test_a_role_starts_as_a_copy_of_the_student_it_names() -> None:
    other = LoadedModel(transformer(seed=3))
    roles = build({"student": {"start_from": "other"}, "critic": {}}, other=other)
    theirs = dict(other.network.named_parameters())
    for name, parameter in roles["student"].network.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert parameter.data_ptr() != theirs[name].data_ptr()
    assert not torch.equal(velocity(roles["student"]), velocity(roles["critic"]))


def test_a_lora_start_computes_the_same_merged_or_as_an_adapter() -> None:
    start = {"start_from": "other"}
    merged = build({"student": start}, other=LoadedModel(transformer(), lora()))["student"]
    base = transformer()
    as_adapter = {"student": start | {"lora": {"rank": 4, "alpha": 2}}, "critic": RANK}
    roles = build(as_adapter, LoadedModel(base), other=LoadedModel(base, lora()))
    assert merged.adapter is None
    assert roles["student"].adapter == "student"
    with torch.no_grad():
        plain, adapted = velocity(roles["critic"]), velocity(roles["student"])
        torch.testing.assert_close(adapted, velocity(merged), rtol=1e-4, atol=1e-5)
    assert (adapted - plain).abs().max() > 1e-3


# ---------------------------------------------------------------- roles that follow


@pytest.mark.parametrize("form", [RANK, {}], ids=["lora", "own weights"])
def test_an_average_keeps_its_share_and_takes_the_rest_of_its_role(
    form: dict[str, Any],
) -> None:
    roles = build({"student": form, "critic": form, "ema": {}})
    average, student, critic = (roles[name] for name in ("ema", "student", "critic"))
    scatter(student)
    before, untouched = values(average), values(critic)
    follow(average, student, decay=0.75)
    for old, mine, theirs in zip(before, values(average), values(student), strict=True):
        torch.testing.assert_close(mine, 0.75 * old + 0.25 * theirs)
    assert all(map(torch.equal, untouched, values(critic)))
    follow(average, student, decay=0.0)
    assert torch.equal(velocity(average), velocity(student))


def test_an_average_equals_its_role_until_its_first_step_and_then_lags(
    config, tmp_path: Path
) -> None:
    settings = {"student": {"learning_rate": 1e-3}, "ema": {"decay": 0.5, "start_step": 2}}
    run = trainer(config("finetune", algorithm=settings), tmp_path)
    student, ema = run.roles["student"], run.roles["ema"]
    for step in range(3):
        before = values(ema)
        run.train_step()
        run.step += 1
        for old, mine, theirs in zip(before, values(ema), values(student), strict=True):
            if step < 2:
                assert torch.equal(mine, theirs)
            else:
                torch.testing.assert_close(mine, (old + theirs) / 2)


def test_a_pulled_role_moves_toward_the_other_after_each_of_its_updates(
    config, tmp_path: Path
) -> None:
    still = {"learning_rate": 1e-20, "lora": {"rank": 2}}
    pulled = still | {"pull": {"toward": "student", "decay": 0.75}}
    algorithm = {"student": still, "critic": pulled, "student_every": 2}
    run = trainer(config("dmd2", algorithm=algorithm), tmp_path)
    student, critic = run.roles["student"], run.roles["critic"]

    def distance() -> float:
        pairs = zip(values(student), values(critic), strict=True)
        return sum((mine - theirs).abs().sum().item() for mine, theirs in pairs)

    distances = [distance()]
    for _ in range(3):
        run.train_step()
        run.step += 1
        distances.append(distance())
    # The student moves at steps 0 and 2: each leaves three quarters of the way.
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert ratios == pytest.approx([0.75, 1, 0.75], rel=1e-5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"critic": {"lora": {"targets": ["to_z"]}}},
            r"^algorithm\.critic\.lora\.targets: no linear layer of the model is named 'to_z'",
        ),
        (
            {"student": RANK | {"start_from": "adapted"}, "critic": {}},
            r"^algorithm\.student\.start_from: adapted has a transformer of its own",
        ),
        ({"critic": {"pull": {"toward": "teacher"}}}, r"^algorithm\.critic\.pull\.toward: "),
        ({"critic": RANK | {"pull": {}}}, r"^algorithm\.critic\.pull: .* different parameters"),
        ({"ema": {"of": "teacher"}}, r"^algorithm\.ema\.of: there is no trained role 'teacher'"),
    ],
)
def test_a_role_that_cannot_be_built_names_itself_and_the_field(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(settings, adapted=LoadedModel(transformer(), lora()))


@pytest.mark.parametrize("change", [{"text_dim": 24}, {"in_channels": 8}, {"out_channels": 8}])
@pytest.mark.parametrize(
    ("role", "field"), [("teacher", "model"), ("student", "start_from"), ("critic", "start_from")]
)
def test_a_model_of_another_architecture_names_the_role_and_the_field(
    role: str, field: str, change: dict[str, int]
) -> None:
    ((name, value),) = change.items()
    message = rf"^algorithm\.{role}\.{field}: its {name} is {value} and that of the run's model"
    with pytest.raises(ValueError, match=message):
        build({role: {field: "other"}}, other=LoadedModel(transformer(**change)))


def test_a_lora_that_changes_parameters_in_full_is_no_start_of_a_run(
    config, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.blocks.0.diff_m": torch.zeros(1, 6, 8)}, path)
    run = config("finetune", adapters=[{"path": str(path)}])
    with pytest.raises(ValueError, match=r"1 parameters in full, such as blocks\.0\.scale_shift"):
        load_models(run, Registry())

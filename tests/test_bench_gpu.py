"""`make bench-gpu` on shapes that a CPU can run, and what it says without an accelerator."""

import pytest
import torch

from tests.bench_gpu import SHAPES, Shape, bench, build, main, table

TINY = Shape(
    "tiny",
    {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "ffn_dim": 48},
    text={
        "vocab_size": 1024,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
    },
    vae={"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    text_length=32,
    width=32,
    height=32,
    num_frames=5,
)


def test_every_row_of_the_table_is_measured_on_the_same_networks() -> None:
    rows = list(bench(TINY, "cpu", num_steps=2))
    assert [row.num_forwards for row in rows] == [4, 4, 4, 4]
    assert all(0 < row.denoise_sec < row.total_sec for row in rows)
    shown = table(rows, "a CPU").splitlines()
    assert [line.split(" | ")[1] for line in shown[4:]] == [row.what for row in rows]


@pytest.mark.parametrize(("name", "billions"), [("1.3B", 1.42), ("14B", 14.29)])
def test_the_shapes_have_the_parameters_of_the_checkpoints(name: str, billions: float) -> None:
    components = build(SHAPES[name], "meta")
    count = sum(parameter.numel() for parameter in components.transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.01)
    count = sum(parameter.numel() for parameter in components.text_encoder.parameters())
    assert count / 1e9 == pytest.approx(5.68, abs=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1

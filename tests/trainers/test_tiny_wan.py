"""The TinyWan that is shipped: its tokenizer, its size in git, and that it obeys."""

from pathlib import Path

import pytest
import torch

from pipelines.catalog.registry import Registry
from pipelines.model_cache import ModelCache
from pipelines.models.loading import Components, load_components
from trainers.evaluation.measure import Verdict, evaluate_autoencoder, judge, summarise
from trainers.tiny.wan import TEXT_LENGTH, build_tokenizer
from trainers.worlds.shapes import SLOTS, Caption, all_captions

FOLDER = Path("assets/tiny-wan")


@pytest.fixture(scope="module")
def tiny_wan() -> Components:
    return load_components(FOLDER, TEXT_LENGTH, "cpu")


def test_the_tokenizer_knows_the_grammar_and_spells_out_other_words() -> None:
    tokenizer = build_tokenizer()
    for caption in all_captions()[::50]:
        words = [token for token in tokenizer.tokenize(str(caption)) if len(token) > 1]
        assert [word.removeprefix("▁") for word in words] == [
            word for word in str(caption).split() if len(word) > 1
        ]
    strange = tokenizer("a Zebra, 12 日本 moving left").input_ids
    assert len(strange) > 5
    assert tokenizer.convert_tokens_to_ids("▁left") in strange


def test_long_prompts_are_cut_at_the_text_length_and_short_ones_padded_with_zeros(
    tiny_wan: Components,
) -> None:
    embeds = tiny_wan.encode_prompt(["a red circle", "zebra " * 100])
    assert embeds.shape == (2, TEXT_LENGTH, 128)
    rows = embeds.abs().sum(-1) > 0
    assert rows[0].sum() < 10
    assert rows[1].all()


def test_different_captions_have_different_embeddings(tiny_wan: Components) -> None:
    embeds = tiny_wan.encode_prompt([str(caption) for caption in all_captions()])
    distances = torch.cdist(embeds.flatten(1), embeds.flatten(1))
    distances.fill_diagonal_(torch.inf)
    assert distances.min() > 1.0


def test_the_model_stays_below_25_mb() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 25e6


def test_latents_are_normalised_to_unit_variance(tiny_wan: Components) -> None:
    from trainers.worlds.shapes import render

    clips = torch.stack(
        [torch.from_numpy(render(c, 77)).permute(0, 3, 1, 2) for c in all_captions()[::37]]
    )
    latents = tiny_wan.encode(clips)
    assert latents.mean().item() == pytest.approx(0, abs=0.15)
    assert latents.std().item() == pytest.approx(1, abs=0.15)


def test_the_autoencoder_keeps_clips_that_the_checker_passes(tiny_wan: Components) -> None:
    figures = evaluate_autoencoder(tiny_wan, num_clips=12)
    assert figures["psnr_db"] >= 30
    assert figures["passing"] >= 0.9


def test_accuracies_are_counted_over_seen_and_held_out_triples_apart() -> None:
    seen = Caption.parse("a small red circle moving left on a black background")
    held_out = Caption.parse("a small green circle moving left on a black background")
    assert held_out.held_out
    right, wrong = dict.fromkeys(SLOTS, True), dict.fromkeys(SLOTS, True) | {"shape": False}
    summary = summarise([Verdict(seen, right), Verdict(seen, wrong), Verdict(held_out, right)])
    assert summary["prompt_accuracy"] == pytest.approx(2 / 3, abs=1e-3)
    assert summary["prompt_accuracy_seen"] == 0.5
    assert summary["prompt_accuracy_held_out"] == 1.0
    assert summary["slot_accuracy_shape"] == pytest.approx(2 / 3, abs=1e-3)


def test_the_shipped_model_obeys_prompts() -> None:
    registry = Registry()
    recipes = [registry.recipe("tiny-wan", p) for p in registry.prompts("shapes_demo")]
    summary = summarise(judge(recipes, ModelCache(registry, "cpu")))
    assert summary["slot_accuracy_colour"] >= 0.75
    assert summary["prompt_accuracy"] >= 0.5

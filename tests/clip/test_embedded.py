import torch

from so_clip.clip.architecture import tiny_card
from so_clip.clip.embedded import embedded_weights


def test_stored_rows_are_used_and_the_others_follow_the_seed() -> None:
    from safetensors.torch import load_file

    from so_clip.paths import ASSETS_DIR

    stored = load_file(ASSETS_DIR / "tiny.safetensors")
    embedding = embedded_weights()["token_embedding.weight"]
    token_ids = stored["token_ids"].long()
    assert torch.equal(embedding[token_ids], stored["token_embedding.rows"].float())
    card = tiny_card()
    generator = torch.Generator().manual_seed(card["embedding_seed"])
    drawn = torch.randn(embedding.shape, generator=generator) * card["embedding_std"]
    others = torch.ones(len(embedding), dtype=torch.bool)
    others[token_ids] = False
    assert torch.equal(embedding[others], drawn[others])


def test_everything_is_float32_and_repeatable() -> None:
    first, second = embedded_weights(), embedded_weights()
    assert all(value.dtype == torch.float32 for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())

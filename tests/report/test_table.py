"""Names of tables."""

from so_clip.report.table import slug


def test_slugs_are_safe_file_names():
    assert [slug(text) for text in ("ViT-B/16", "../x", "", "日本")] == [
        "vit-b-16",
        "x",
        "none",
        "none",
    ]

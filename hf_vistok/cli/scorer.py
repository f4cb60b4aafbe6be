"""`hf-vistok scorer`: trains what text-to-image results are measured with."""

from pathlib import Path
from typing import Annotated

import typer


def scorer(
    data: Annotated[Path, typer.Argument(help="The emoji set.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("emoji-scorer"),
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
) -> None:
    """Train an image-text scorer on real pictures, for `evaluate --prompts`; never on what a generator made."""
    from hashlib import sha256

    import numpy as np

    from hf_vistok.data.sources import EmojiSource
    from hf_vistok.evaluation.alignment import draw_candidates, top_1, train_scorer
    from hf_vistok.training.export import renewed

    size = int(np.load(data / "images.npy", mmap_mode="r").shape[1])
    source = EmojiSource(data, size)
    model = train_scorer(source.take(np.arange(len(source))).images, source.records, steps=steps, seed=seed)
    with renewed(output) as scratch:
        model.half().save_pretrained(scratch)
        (scratch / "README.md").unlink(missing_ok=True)  # the folder's own stays
    model.float()
    for split in ("train", "pairs", "names"):
        part = EmojiSource(data, size, split)
        samples = part.take(np.arange(len(part)))
        share = top_1(model, samples.images, draw_candidates(samples.records, source.records, 100))
        typer.echo(f"{split}: {len(part)} real pictures, own name first of 100: {share:.1%}")
    typer.echo(f"wrote {output}, sha256 {sha256((output / 'model.safetensors').read_bytes()).hexdigest()}")

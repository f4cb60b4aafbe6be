"""What the lab does, as functions with documented arguments: the page, its API and its MCP tools call these."""

from collections.abc import Sequence
from typing import Any

from bench import Tokenizer, names, parse_ids, to_text, tokenizer
from views import amount, changed_share, comparison, error_map, psnr

from hf_vistok.spaces.common import friendly, need, number, whole_number

FIRST = names()[0] if names() else ""


def ladder_lengths(most: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def cost(chosen: Tokenizer, count: int) -> str:
    """What so many tokens are."""
    return f"{count} token{'s' * (count > 1)} · {amount(chosen.size_in_bytes(count))}"


@friendly
def reconstruct(image: str, tokens: float = 32, tokenizer_name: str = FIRST) -> tuple[Any, Any, str, str]:
    """
    Turn a picture into its first tokens and back.

    Args:
        image: The picture; it is resized and cropped to the tokenizer's square.
        tokens: How many tokens to keep, the most important first; more than there are mean all.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        The picture and its reconstruction.
        Map of the error: dark where there is none.
        Tokens, bytes and PSNR.
        The token ids.
    """
    chosen = tokenizer(tokenizer_name)
    count = chosen.check_count(tokens)
    seen = chosen.encode(need(image))
    ids = seen.ids[:count]
    drawn = chosen.decode([ids])[0]
    facts = f"**{cost(chosen, count)} · {psnr(seen.picture, drawn):.1f} dB**"
    return (seen.picture, drawn), error_map(seen.picture, drawn), facts, to_text(ids)


@friendly
def ladder(image: str, tokenizer_name: str = FIRST) -> list[tuple[Any, str]]:
    """
    A picture from 1, 2, 4, ... and all of its tokens.

    Args:
        image: The picture.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        Pictures with the number of tokens as captions.
    """
    chosen = tokenizer(tokenizer_name)
    seen = chosen.encode(need(image))
    lengths = ladder_lengths(chosen.most) if chosen.model.is_prefix_ordered else [chosen.most]
    drawn = chosen.decode([seen.ids[:length] for length in lengths])
    return [(picture, str(length)) for picture, length in zip(drawn, lengths, strict=True)]


@friendly
def compare_codecs(image: str, tokens: float = 32, tokenizer_name: str = FIRST) -> tuple[list[tuple[Any, str]], str]:
    """
    Compare tokens with JPEG and WebP at as many bytes.

    Args:
        image: The picture.
        tokens: How many tokens to keep; their bytes are the budget of the other two.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        The picture, and what each codec makes of it.
        A table of bytes and PSNR.
    """
    chosen = tokenizer(tokenizer_name)
    count = chosen.check_count(tokens)
    seen = chosen.encode(need(image))
    return comparison(seen.picture, chosen.decode([seen.ids[:count]])[0], chosen.size_in_bytes(count))


@friendly
def draw(tokens: str, tokenizer_name: str = FIRST) -> Any:
    """
    Draw the picture that token ids stand for.

    Args:
        tokens: Whole numbers with blanks between them, the most important first.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        The picture.
    """
    chosen = tokenizer(tokenizer_name)
    return chosen.decode([parse_ids(tokens, chosen)])[0]


@friendly
def replace_token(
    tokens: str, position: float, new_id: float, tokenizer_name: str = FIRST
) -> tuple[Any, Any, str, str]:
    """
    Replace one token and see what changes.

    Args:
        tokens: Token ids with blanks between them.
        position: Which token, 1 is the first.
        new_id: The id to put there.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        The picture before and after.
        Map of the change: dark where there is none.
        What was changed.
        The token ids after the change.
    """
    chosen = tokenizer(tokenizer_name)
    ids = parse_ids(tokens, chosen)
    place = whole_number("The position", position, 1, len(ids)) - 1
    new = whole_number("The new token", new_id, 0, chosen.codebook - 1)
    changed = [*ids[:place], new, *ids[place + 1 :]]
    before, after = chosen.decode([ids, changed])
    share = changed_share(before, after)
    facts = f"**Token {place + 1}: {ids[place]} → {new} · {share:.0%} of the pixels change**"
    return (before, after), error_map(before, after), facts, to_text(changed)


@friendly
def compare_tokenizers(
    image: str, tokens: float = 32, tokenizer_name: str = FIRST, other_tokens: float = 8, other_name: str = FIRST
) -> tuple[Any, list[tuple[Any, str]], str]:
    """
    One picture through two tokenizers.

    Args:
        image: The picture.
        tokens: Tokens that the first one keeps.
        tokenizer_name: The first tokenizer.
        other_tokens: Tokens that the second one keeps.
        other_name: The second tokenizer; it may be the same.

    Returns:
        Both reconstructions.
        The picture and both reconstructions.
        A table of tokens, bytes and PSNR.
    """
    drawn, rows = [], ["| | tokens | data | PSNR |", "|---|---|---|---|"]
    for name, wanted in ((tokenizer_name, tokens), (other_name, other_tokens)):
        chosen = tokenizer(name)
        count = chosen.check_count(wanted)
        seen = chosen.encode(need(image))
        picture = chosen.decode([seen.ids[:count]])[0]
        drawn.append(picture)
        quality = f"{psnr(seen.picture, picture):.1f} dB"
        rows.append(f"| {name.rsplit('/', 1)[-1]} | {count} | {amount(chosen.size_in_bytes(count))} | {quality} |")
    pictures = [(seen.picture, "original"), (drawn[0], "first"), (drawn[1], "second")]
    side = max(picture.width for picture in drawn)
    first, second = (picture.resize((side, side)) if picture.width < side else picture for picture in drawn)
    return (first, second), pictures, "\n".join(rows)


@friendly
def mix(
    image: str, other_image: str, first: float = 8, weight: float = 1.0, tokenizer_name: str = FIRST
) -> tuple[Any, list[tuple[Any, str]]]:
    """
    Give a picture the first tokens of another one, or a blend of both.

    Args:
        image: The picture whose last tokens stay.
        other_image: The picture that gives its first tokens.
        first: How many of the first tokens are mixed.
        weight: 1 takes those of the other picture, 0 keeps the picture's own, between is a blend of both.
        tokenizer_name: One of the tokenizers of this page.

    Returns:
        The mixed picture.
        The same with the first 0, 1, 2, 4, ... and all tokens mixed.
    """
    chosen = tokenizer(tokenizer_name)
    count = min(whole_number("The number of mixed tokens", first, 0, 100_000), chosen.most)
    share = number("The weight", weight, 0, 1)
    rows = [chosen.encode(need(image)).ids, chosen.encode(need(other_image, "a second picture")).ids]
    lengths = [0, *ladder_lengths(chosen.most)]
    mixed = mixed_latents(chosen.latents(rows), [count, *lengths], share)
    picture, *steps = chosen.decode_latents(mixed)
    return picture, [(drawn, str(length)) for drawn, length in zip(steps, lengths, strict=True)]


def mixed_latents(latents: Any, lengths: Sequence[int], weight: float) -> Any:
    """
    Latents of two pictures, mixed in their first tokens.

    Args:
        latents: `(2, N, D)`.
        lengths: how many of the first tokens are mixed, one for each row of the result.
        weight: of the second picture.

    Returns:
        `(len(lengths), N, D)`.
    """
    one, two = latents
    rows = one.repeat(len(lengths), 1, 1)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] += weight * (two[:length] - one[:length])
    return rows

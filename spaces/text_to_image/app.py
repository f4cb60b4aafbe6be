"""Text to image: pictures that sharpen while their tokens arrive. Run it with `python app.py` or `hf-vistok demo`."""

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr
from links import from_query, to_query
from painting import (
    MAX_GUIDANCE,
    MAX_PICTURES,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    MODEL,
    NO_STYLE,
    PROMPTS,
    STYLES,
    Drawing,
    Wish,
    checked,
    limits,
    paint,
    parse_ids,
    pipeline,
    redraw,
    strange_words,
)

from hf_vistok.spaces import common

LIMITS = limits()
HEAD = f"""
# Text to image, token by token
A picture here is {LIMITS.tokens} tokens, the most important first. Watch it sharpen while a small
autoregressive model writes them.
"""
# makes the relative link of an answer one that can be shared
ABSOLUTE = "(q) => (q || '').startsWith('?') ? window.location.origin + window.location.pathname + q : q"


def _gallery(drawing: Drawing, seed: int) -> list[tuple[Any, str]]:
    return [(image, f"seed {seed + i}") for i, image in enumerate(drawing.images)]


def _token_lines(drawing: Drawing) -> str:
    return "\n".join(" ".join(map(str, row)) for row in drawing.ids)


def _facts(drawing: Drawing, wish: Wish) -> str:
    written, bits = len(drawing.ids[0]), (LIMITS.codebook - 1).bit_length()
    if written < wish.tokens:
        return f"{written} of {wish.tokens} tokens ..."
    size = -(-written * bits // 8)
    unknown = strange_words(wish.prompt, pipeline().tokenizer)
    hint = f" · not in its vocabulary: {', '.join(unknown[:5])}" if unknown else ""
    return f"{written} tokens · {size} bytes a picture · {drawing.seconds:.1f} s{hint}"


def _answer(drawing: Drawing, wish: Wish) -> tuple[Any, str, str, str]:
    return _gallery(drawing, wish.seed), _token_lines(drawing), _facts(drawing, wish), to_query(wish)


@common.friendly
def generate(
    prompt: str,
    style: str = NO_STYLE,
    seed: float = 0,
    pictures: float = 4,
    tokens: float = LIMITS.tokens,
    prior_guidance: float = LIMITS.prior_guidance,
    guidance: float = LIMITS.guidance,
    steps: float = LIMITS.steps,
) -> Iterator[tuple[Any, str, str, str]]:
    """
    Draw pictures of a text; each answer of the stream is sharper than the one before.

    Args:
        prompt: What to draw, in a few English words, for example "red apple". At most 300 characters.
        style: Drawing style, or "Any".
        seed: Seed of the first picture; the next ones have seed + 1, seed + 2, ...; a seed gives the same picture.
        pictures: Number of pictures, 1 to 8.
        tokens: Number of tokens of each picture; fewer is coarser.
        prior_guidance: How closely the tokens follow the text, 0 to 20; 1 is no guidance.
        guidance: How closely the drawing follows the tokens, 0 to 20; 1 is no guidance.
        steps: Steps of the decoder, 1 to 50.

    Returns:
        Pictures with their seeds as captions.
        Tokens of each picture, one line a picture.
        How far it is, and what a picture costs in bytes.
        Query of the page's address that reproduces these pictures.
    """
    wish = checked(Wish(prompt, style, seed, pictures, tokens, prior_guidance, guidance, steps))
    for drawing in paint(wish):
        yield _answer(drawing, wish)


@common.friendly
def draw_tokens(
    tokens: str,
    prompt: str = "",
    style: str = NO_STYLE,
    seed: float = 0,
    guidance: float = LIMITS.guidance,
    steps: float = LIMITS.steps,
) -> tuple[Any, str]:
    """
    Draw given tokens, for example some that were changed by hand.

    Args:
        tokens: Whole numbers with blanks between them, one line a picture, all lines equally long.
        prompt: The text that the decoder sees beside the tokens; none by default.
        style: Drawing style, or "Any".
        seed: Seed of the decoder's noise for the first picture.
        guidance: How closely the drawing follows the tokens, 0 to 20; 1 is no guidance.
        steps: Steps of the decoder, 1 to 50.

    Returns:
        Pictures with their seeds as captions.
        What was drawn.
    """
    rows = parse_ids(tokens)
    wish = checked(Wish(prompt, style, seed, len(rows), len(rows[0]), 1.0, guidance, steps), prompt_needed=False)
    drawing = redraw(rows, wish)
    return _gallery(drawing, wish.seed), f"drawn from {len(rows[0])} given tokens · {drawing.seconds:.1f} s"


def _shuffled(*wish: Any) -> Iterator[tuple[Any, ...]]:
    """`generate` with a new seed, which comes first in each answer."""
    values = list(wish)
    values[2] = random.randrange(1_000_000)
    for answer in generate(*values):
        yield values[2], *answer


@common.friendly
def _open_link(request: gr.Request) -> Iterator[tuple[Any, ...]]:
    """Settings and pictures of the link that the page was opened with; nothing for a plain address."""
    wish = from_query(dict(request.query_params))
    if wish is None:
        yield (gr.skip(),) * 12
        return
    wish = checked(wish)
    settings = (wish.prompt, wish.style, wish.seed, wish.pictures)
    settings += (wish.tokens, wish.prior_guidance, wish.guidance, wish.steps)
    for drawing in paint(wish):
        yield *settings, *_answer(drawing, wish)


def _settings() -> list[gr.components.Component]:
    with gr.Group(elem_classes="later"):
        with gr.Row():
            pictures = gr.Slider(1, MAX_PICTURES, 4, step=1, label="Pictures", min_width=140)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED - MAX_PICTURES, min_width=140)
        tokens = gr.Slider(1, LIMITS.tokens, LIMITS.tokens, step=1, label="Tokens", info="Fewer is coarser.")
        with gr.Accordion("Advanced", open=False):
            prior_guidance = gr.Slider(0, MAX_GUIDANCE, LIMITS.prior_guidance, step=0.1, label="Guidance of the tokens")
            guidance = gr.Slider(0, MAX_GUIDANCE, LIMITS.guidance, step=0.1, label="Guidance of the drawing")
            steps = gr.Slider(1, MAX_STEPS, LIMITS.steps, step=1, label="Decoder steps")
    return [seed, pictures, tokens, prior_guidance, guidance, steps]


def _results() -> list[gr.components.Component]:
    """The answer's components, not drawn yet."""
    gallery = gr.Gallery(
        label="Pictures",
        columns=2,
        height="auto",
        format="png",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="pictures",
        elem_classes="pictures",
        render=False,
    )
    facts = gr.Markdown(
        "Type a prompt and press Enter.", label="Facts", elem_classes="note", elem_id="facts", render=False
    )
    tokens = gr.Textbox(
        label="Tokens, one line a picture",
        info="Copy them, or change some and draw them again.",
        lines=4,
        max_lines=8,
        buttons=["copy"],
        elem_classes="mono",
        elem_id="tokens",
        render=False,
    )
    link = gr.Textbox(
        label="Link to these pictures",
        interactive=False,
        max_lines=1,
        buttons=["copy"],
        elem_classes="mono",
        elem_id="link",
        render=False,
    )
    return [gallery, tokens, facts, link]


def _examples(prompt: gr.Textbox, answer: list[gr.components.Component]) -> None:
    gr.Examples(
        [[text] for text in PROMPTS],
        inputs=[prompt],
        outputs=answer,
        fn=generate,
        run_on_click=True,
        cache_examples=True,
        cache_mode="lazy",
        label="Examples",
        api_visibility="private",
    )


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_vistok: text to image", delete_cache=common.KEEP_FILES, analytics_enabled=False) as page:
        gr.Markdown(HEAD, elem_classes=["head", "first"])
        answer = gallery, tokens, facts, link = _results()
        with gr.Row(equal_height=False, elem_classes="sides"):
            with gr.Column(scale=2, min_width=300):
                prompt = gr.Textbox(label="Prompt", placeholder=PROMPTS[0], max_length=MAX_PROMPT, elem_id="prompt")
                _examples(prompt, answer)
                style = gr.Radio([NO_STYLE, *STYLES], value=NO_STYLE, label="Style")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", min_width=120, elem_id="draw")
                    shuffle = gr.Button("New seed", min_width=120, elem_id="shuffle")
                seed, *others = _settings()
            with gr.Column(scale=3, min_width=300):
                gallery.render()
                facts.render()
                with gr.Group(elem_classes="last"):
                    tokens.render()
                    again = gr.Button("Draw these tokens", size="sm", elem_id="again")
                    link.render()
        gr.Markdown(
            f"Model `{MODEL.rsplit('/', 1)[-1]}`. From code, or as an MCP tool: “Use via API” below.",
            elem_classes=["note", "last"],
        )
        _connect(page, [prompt, style, seed, *others], answer, draw, shuffle, again)
    return page


def _connect(
    page: gr.Blocks, wish: list[Any], answer: list[Any], draw: gr.Button, shuffle: gr.Button, again: gr.Button
) -> None:
    """What happens when."""
    prompt, style, seed, *others = wish
    gallery, tokens, facts, link = answer
    options = {"concurrency_id": "paint", "show_progress_on": [gallery], "show_progress": "minimal"}
    drawn = gr.on([draw.click, prompt.submit], generate, wish, answer, api_name="generate", **options)
    mixed = shuffle.click(_shuffled, wish, [seed, *answer], api_visibility="private", **options)
    opened = page.load(_open_link, None, [*wish, *answer], api_visibility="private", **options)
    for event in (drawn, mixed, opened):
        event.then(None, link, link, js=ABSOLUTE, api_visibility="private")
    given = [tokens, prompt, style, seed, *others[-2:]]
    again.click(draw_tokens, given, [gallery, facts], api_name="draw_tokens", **options)


demo = build()

if __name__ == "__main__":
    pipeline.warm_up()
    common.launch(demo)

"""The tokenizer lab: look at what tokens keep of a picture. Run it with `python app.py` or `hf-vistok demo`."""

import random
from pathlib import Path
from typing import Any

import bench
import gradio as gr
from actions import FIRST, compare_codecs, compare_tokenizers, draw, ladder, mix, reconstruct, replace_token

import hf_vistok
from hf_vistok.spaces import common

HEAD = """
# Tokenizer lab
A picture as a few whole numbers, and back. Take fewer of them, replace one, mix those of two
pictures, and see what each of them keeps.
"""
PICTURES = sorted(map(str, (Path(hf_vistok.__file__).parent / "pictures").glob("*.png")))
SECOND = PICTURES[2 % len(PICTURES)] if PICTURES else None
RIVALS = """JPEG and WebP get as many bytes as the tokens, and choose their best quality, on a smaller copy where
that is better. Headers are not counted, in their favour; a whole file is larger."""
LOOK = {"format": "png", "interactive": False, "elem_classes": "pixels"}
IMAGE = {**LOOK, "buttons": ["download", "fullscreen"]}
STRIP = {
    **LOOK,
    "height": "auto",
    "object_fit": "contain",
    "buttons": ["download"],
    "elem_classes": ["pixels", "strip"],
}


@common.friendly
def _limits(name: str, tokens: float) -> tuple[Any, Any]:
    """The sliders of tokens for another tokenizer."""
    most = bench.tokenizer(name).most
    return gr.update(maximum=most, value=min(int(tokens or most), most))


@common.friendly
def _chips(tokens: str, name: str, chosen: str | None) -> Any:
    """A button for each token."""
    ids = bench.parse_ids(tokens, bench.tokenizer(name)) if tokens else []
    labels = [(f"{place}: {value}", str(place)) for place, value in enumerate(ids, 1)]
    keep = chosen if chosen and int(chosen) <= len(ids) else None
    return gr.update(choices=labels, value=keep)


def _chosen(position: str | None) -> int:
    if not position:
        raise ValueError("Choose one of the tokens first.")
    return int(position)


@common.friendly
def _try_another(tokens: str, position: str | None, name: str) -> tuple[Any, ...]:
    """A random id in the chosen place."""
    place = _chosen(position)
    new = random.randrange(bench.tokenizer(name).codebook)
    before_after, change, facts, _ = replace_token(tokens, place, new, name)
    return new, before_after, change, facts


@common.friendly
def _replace(tokens: str, position: str | None, new: float, name: str) -> tuple[Any, ...]:
    """The id that was typed in the chosen place."""
    return replace_token(tokens, _chosen(position), new, name)[:3]


@common.friendly
def _keep(tokens: str, position: str | None, new: float, name: str) -> str:
    """The tokens with the change."""
    return replace_token(tokens, _chosen(position), new, name)[3]


def _note(text: str) -> None:
    gr.Markdown(text, elem_classes="note")


def _slider(label: str, **options: Any) -> gr.ImageSlider:
    return gr.ImageSlider(label=label, max_height=420, **LOOK, **options)


class Inputs:
    """The left side: one picture, one tokenizer, one number of tokens for all tabs."""

    def __init__(self) -> None:
        most = bench.expected_tokens(FIRST)
        self.picture = common.picture_input(
            label="Picture", value=PICTURES[0], height=280, elem_id="picture", elem_classes="input"
        )
        with gr.Group():
            self.tokens = gr.Slider(1, most, most, step=1, label="Tokens", elem_id="tokens")
            self.name = gr.Dropdown(bench.names(), value=FIRST, label="Tokenizer")
        self.facts = gr.Markdown(label="Facts", elem_classes="facts", elem_id="facts")
        with gr.Column(elem_classes="last"):
            gr.Examples([[path] for path in PICTURES], [self.picture], label="Examples", examples_per_page=12)

    @property
    def all(self) -> list[Any]:
        """What most functions take."""
        return [self.picture, self.tokens, self.name]


class Reconstruction:
    """The first tab."""

    def __init__(self) -> None:
        with gr.Row():
            self.slider = _slider("Original | reconstruction", elem_id="slider")
            self.error = gr.Image(label="Error, dark is none", elem_id="error", **IMAGE)
        _note("From the first 1, 2, 4, ... tokens:")
        self.ladder = gr.Gallery(label="Pictures", show_label=False, columns=6, elem_id="ladder", **STRIP)


class Rivals:
    """JPEG and WebP."""

    def __init__(self) -> None:
        _note(RIVALS)
        self.gallery = gr.Gallery(label="Pictures", show_label=False, columns=4, elem_id="coded", **STRIP)
        self.table = gr.Markdown(label="Table", elem_classes="facts", elem_id="rivals")


class Inspector:
    """One token at a time."""

    def __init__(self) -> None:
        self.tokens = gr.Textbox(
            label="Tokens of the picture",
            info="Copy them, or paste others.",
            buttons=["copy"],
            lines=1,
            max_lines=4,
            elem_classes="mono",
            elem_id="ids",
        )
        self.chips = gr.Radio(
            [], label="Choose one: a random other one takes its place", elem_id="chips", elem_classes="chips"
        )
        with gr.Row():
            self.new = gr.Number(label="New token", precision=0, minimum=0, min_width=120, elem_id="new")
            with gr.Column(min_width=120):
                self.another = gr.Button("Another", size="sm", elem_id="another")
                self.keep = gr.Button("Keep the change", size="sm", elem_id="keep")
        self.facts = gr.Markdown(label="Facts", elem_classes="facts", elem_id="change")
        with gr.Row():
            self.slider = _slider("Before | after")
            self.change = gr.Image(label="Change, dark is none", elem_id="changed", **IMAGE)


class Duel:
    """Two tokenizers."""

    def __init__(self) -> None:
        most = bench.expected_tokens(bench.names()[-1])
        with gr.Row():
            self.name = gr.Dropdown(bench.names(), value=bench.names()[-1], label="Second tokenizer", min_width=200)
            self.tokens = gr.Slider(1, most, max(1, most // 4), step=1, label="Its tokens", min_width=200)
        with gr.Row():
            self.slider = _slider("First | second")
            with gr.Column(min_width=220):
                self.gallery = gr.Gallery(label="Pictures", show_label=False, columns=3, elem_id="duel", **STRIP)
                self.table = gr.Markdown(label="Table", elem_classes="facts")


class Mixer:
    """Two pictures."""

    def __init__(self) -> None:
        most = bench.expected_tokens(FIRST)
        with gr.Row():
            with gr.Column(min_width=220):
                self.picture = common.picture_input(
                    label="Second picture", value=SECOND, height=280, elem_id="second", elem_classes="input"
                )
                gr.Examples([[path] for path in PICTURES], [self.picture], label="Examples", examples_per_page=12)
            with gr.Column(min_width=220):
                self.mixed = gr.Image(label="Mixed", elem_id="mixed", height=280, **IMAGE)
                with gr.Group():
                    self.first = gr.Slider(0, most, min(8, most), step=1, label="First tokens from the second picture")
                    self.weight = gr.Slider(0, 1, 1, step=0.05, label="How much of them", info="1 swaps, less blends.")
        _note("The same with the first 0, 1, 2, 4, ... tokens:")
        self.steps = gr.Gallery(label="Steps", show_label=False, columns=7, elem_id="steps", **STRIP)


# ---------------------------------------------------------------------- what happens when


def _connect(page: gr.Blocks, side: Inputs, tabs: tuple[Any, ...]) -> None:
    """What happens when; the listeners of the documented functions are the API."""
    first, rivals, inspector, duel, mixer = tabs
    quiet = {"show_progress": "hidden", "trigger_mode": "always_last"}
    new = [page.load, side.picture.change, side.name.change]
    newer = [*new, side.tokens.change]
    seen = [first.slider, first.error, side.facts, inspector.tokens]
    gr.on(newer, reconstruct, side.all, seen, api_name="reconstruct", **quiet)
    gr.on(new, ladder, [side.picture, side.name], first.ladder, api_name="ladder", **quiet)
    coded = [rivals.gallery, rivals.table]
    gr.on(newer, compare_codecs, side.all, coded, api_name="compare_codecs", **quiet)
    both, shown = [*side.all, duel.tokens, duel.name], [duel.slider, duel.gallery, duel.table]
    changes = [*newer, duel.tokens.change, duel.name.change]
    gr.on(changes, compare_tokenizers, both, shown, api_name="compare_tokenizers", **quiet)
    two = [side.picture, mixer.picture, mixer.first, mixer.weight, side.name]
    changes = [*new, mixer.picture.change, mixer.first.change, mixer.weight.change]
    gr.on(changes, mix, two, [mixer.mixed, mixer.steps], api_name="mix", **quiet)
    for name, slider in ((side.name, side.tokens), (duel.name, duel.tokens), (side.name, mixer.first)):
        name.change(_limits, [name, slider], slider, api_visibility="private", **quiet)
    _connect_inspector(side, inspector, {"api_visibility": "private", **quiet})


def _connect_inspector(side: Inputs, tab: Inspector, quiet: dict[str, Any]) -> None:
    drawn = [tab.slider, tab.change, tab.facts]
    tab.tokens.change(_chips, [tab.tokens, side.name, tab.chips], tab.chips, **quiet)
    place = [tab.tokens, tab.chips, side.name]
    gr.on([tab.chips.input, tab.another.click], _try_another, place, [tab.new, *drawn], **quiet)
    typed = [tab.tokens, tab.chips, tab.new, side.name]
    tab.new.input(_replace, typed, drawn, **quiet)
    tab.keep.click(_keep, typed, tab.tokens, **quiet)


def _api_only(side: Inputs, tab: Inspector) -> None:
    """Functions that the page reaches by other ways; programs get plain arguments."""
    position, picture, text = (
        gr.Number(1, visible=False),
        gr.Image(label="Picture", format="png", visible=False),
        gr.Textbox(label="Tokens", visible=False),
    )
    hidden = gr.Button(visible=False)
    hidden.click(draw, [tab.tokens, side.name], picture, api_name="draw")
    given, made = [tab.tokens, position, tab.new, side.name], [tab.slider, tab.change, tab.facts, text]
    hidden.click(replace_token, given, made, api_name="replace_token")


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_vistok: tokenizer lab", delete_cache=common.KEEP_FILES, analytics_enabled=False) as page:
        gr.Markdown(HEAD, elem_classes=["head", "first"])
        with gr.Row(equal_height=False, elem_classes="sides"):
            with gr.Column(scale=2, min_width=300):
                side = Inputs()
            with gr.Column(scale=5, min_width=300):
                with gr.Tab("Reconstruction"):
                    first = Reconstruction()
                with gr.Tab("JPEG and WebP"):
                    rivals = Rivals()
                with gr.Tab("Tokens"):
                    inspector = Inspector()
                with gr.Tab("Two tokenizers"):
                    duel = Duel()
                with gr.Tab("Two pictures"):
                    mixer = Mixer()
        _connect(page, side, (first, rivals, inspector, duel, mixer))
        _api_only(side, inspector)
        gr.Markdown("From code, or as an MCP tool: “Use via API” below.", elem_classes=["note", "last"])
    return page


demo = build()

if __name__ == "__main__":
    bench.warm_up()
    common.launch(demo)

"""What the Spaces share: the look, friendly errors, uploads of any kind, and how a page is started."""

import functools
import html
import importlib.util
import inspect
import logging
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")  # read when gradio is imported
_EXAMPLES = tempfile.TemporaryDirectory(prefix="hf_vistok_examples_", ignore_cleanup_errors=True)
os.environ.setdefault("GRADIO_EXAMPLES_CACHE", _EXAMPLES.name)  # examples belong to the model of this process

import gradio as gr  # noqa: E402
from gradio.data_classes import ImageData  # noqa: E402

QUEUE_SIZE = int(os.environ.get("HF_VISTOK_QUEUE", "32"))
MAX_UPLOAD = "20mb"
KEEP_FILES = (600, 3600)  # every 10 minutes, files older than an hour go
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; min-width: 0 !important; margin: 0 auto !important; }
.gradio-container .main > .wrap { padding: clamp(0.75rem, 3vw, 2rem) !important; box-sizing: border-box; }
.gradio-container .main, .gradio-container .main > .wrap, .gradio-container .contain { max-width: 100%; min-width: 0; }
.head h1 { font-size: 1.7rem; letter-spacing: -0.02em; margin: 0.4rem 0 0.1rem; }
.head p { color: var(--body-text-color-subdued); max-width: 46rem; margin: 0 0 0.4rem; }
.note p, .note { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.facts p { font-variant-numeric: tabular-nums; }
.facts table { width: 100%; font-variant-numeric: tabular-nums; border-collapse: collapse; }
.facts th, .facts td { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.facts table, .facts tr { border: 0 !important; background: none !important; }
.pixels img { image-rendering: pixelated; }
.pixels .image-frame, .pixels .image-frame img { width: 100%; object-fit: contain; max-height: 420px; }
.input img { object-fit: contain !important; }
.chips label { padding: 0.25rem 0.55rem; font-variant-numeric: tabular-nums; font-size: var(--text-sm); }
.chips label input { position: absolute; opacity: 0; }
.chips label.selected { background: var(--color-accent); color: white; }
.chips label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.chips label span { margin-left: 0; }
.facts td + td, .facts th { white-space: nowrap; }
.strip .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
.strip .gallery-item, .strip .thumbnail-item { min-width: 0 !important; width: 100% !important; }
.strip .grid-wrap { min-height: 0 !important; max-height: none !important; }
.mono textarea, .mono input { font-family: var(--font-mono); font-size: var(--text-sm); }
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible {
  outline: 2px solid var(--color-accent) !important; outline-offset: 2px;
}
.pictures .grid-wrap { min-height: 16rem; max-height: none !important; }
@media (max-width: 640px) {
  .head h1 { font-size: 1.35rem; }
  /* one column, the answer right below the button: settings and details come later */
  .sides { flex-direction: column !important; flex-wrap: nowrap !important; }
  .sides > .column { display: contents; }
  .sides > *, .sides > .column > * { min-width: 0 !important; width: 100%; max-width: 100%; }
  .strip .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .facts th, .facts td { padding: 0.4rem 0.3rem !important; }
  .first { order: -1; }
  .later { order: 1; }
  .last { order: 2; }
}
"""
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.-]+/)+")
log = logging.getLogger("hf_vistok.spaces")


def theme() -> gr.themes.Base:
    """The look of the pages; fonts are the system's own, so nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=list(FONTS),
        font_mono=list(MONO),
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="*background_fill_secondary",
        slider_color="*primary_500",
    )


def picture_input(**options: Any) -> gr.Image:
    """
    A picture to upload, photograph or paste; functions get the path of the file as it is.

    gradio would open it first and convert it on the way; what becomes of alpha, rotation, 16 bit and files that are no
    pictures is the image processor's work, whose messages say what is wrong. A method of the instance, since gradio
    writes a stub file beside the source of each subclass.
    """
    image = gr.Image(**{"type": "filepath", "sources": ["upload", "webcam", "clipboard"], **options})
    original = image.preprocess

    def preprocess(payload: ImageData | None) -> str | None:
        if payload is None or (payload.path is None and not payload.url):
            return None
        if payload.path is None:  # the picture itself, as a data URL
            return _friendly_call(original, (payload,), {})
        return str(payload.path)

    image.preprocess = preprocess
    return image


def own_file(picture: Any) -> Any:
    """
    The PIL picture with a mark that gives it a file of its own.

    gradio names files by their content and writes them in place: of two answers with equal pictures, the second would
    rewrite the file while a browser may be reading it.
    """
    picture.info = {"serial": uuid.uuid4().hex}
    return picture


def need(path: str | None, what: str = "a picture") -> str:
    """
    The path, where there is one.

    Raises:
        gradio.Error: where nothing was uploaded; programs see its message, a page that was just emptied does not.
    """
    if not path:
        text = f"Choose {what} first: upload one, paste it, or take one of the examples."
        raise gr.Error(text, visible=False, print_exception=False)
    return path


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """
    A whole number in [low, high].

    Raises:
        ValueError: for anything else, naming what is wanted.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise ValueError(f"{name} must be a whole number from {low} to {high}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {int(value)}.")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """
    A number in [low, high].

    Raises:
        ValueError: for anything else, naming what is wanted.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


# ---------------------------------------------------------------------- errors


def _as_message(error: Exception) -> gr.Error:
    """What a person sees of an error: the message of those that were foreseen, an apology for the others."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ValueError) and str(error):
        text = FOLDERS.sub("", " ".join(str(error).split()))  # where files lie here is nobody's business
        return gr.Error(html.escape(text[:400]), title="That did not work", print_exception=False)
    log.exception("unexpected error")
    text = "Something went wrong here, and it is not your fault. Please try once more."
    return gr.Error(text, title="Sorry", print_exception=False)


def _friendly_call(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise _as_message(error) from error


def friendly(function: Callable) -> Callable:
    """Turns the errors of a function, or of a generator function, into messages for people."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise _as_message(error) from error

        return generator

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _friendly_call(function, args, kwargs)

    return call


# ---------------------------------------------------------------------- loading and starting


class Lazy:
    """
    A value that is made once, by whoever asks first, or in the background.

    Args:
        make: makes it; an error is not kept, the next one to ask tries again.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._lock, self._made = make, threading.Lock(), []

    def __call__(self) -> Any:
        """The value."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def warm_up(self) -> None:
        """Makes it in a thread, so that the page is there at once and the first click does not wait."""

        def work() -> None:
            try:
                self()
            except Exception:
                log.exception("could not load in the background")

        threading.Thread(target=work, daemon=True).start()


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """
    Starts a page: with a bounded queue, its look, and MCP where that is installed.

    Args:
        demo: the page.
        options: of `launch`; `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` are understood as well.
    """
    has_mcp = importlib.util.find_spec("mcp") is not None
    settings = {
        "theme": theme(),
        "css": CSS,
        "max_file_size": MAX_UPLOAD,
        "mcp_server": has_mcp,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "run_history": False,
        **options,
    }
    return demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=1).launch(**settings)

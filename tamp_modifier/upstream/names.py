"""Everything of llm-compressor, compressed-tensors, transformers and loguru that is relied on.

One row a name that is patched, that is private, or that no documentation promises. The rows are
checked once a process: `LLM_COMPRESSOR` when a TAMPModifier is initialised and when zeros are
guarded, `QUANTIZERS` when packed checkpoints are registered with transformers, `LOGURU` before
sinks are hidden. To follow a new version of one of these packages, run ``tests/upstream``: each row
is a test.

A check of names cannot see what a name does. So llm-compressor has an upper bound in pyproject.toml
besides: a solver or an expert's layout that changes behind the same signature would give other
weights without a word.
"""

from __future__ import annotations

from functools import partial

from tamp_modifier.upstream.check import Name, require

_llm = partial(Name, seen="0.14.0.1")
_tensors = partial(Name, seen="0.19.0")
_tf = partial(Name, seen="5.17.0")

_GPTQ = "llmcompressor.modifiers.gptq"
_CACHE = "llmcompressor.pipelines.cache:IntermediatesCache"
_TRACER = "llmcompressor.pipelines.sequential.helpers:SequentialTracer"
_SUBGRAPH = "llmcompressor.pipelines.sequential.helpers:Subgraph"
_EXPERTS = "llmcompressor.modeling.moe.linear_experts:LinearExperts2D"
_QUANTIZATION = "llmcompressor.modifiers.quantization.quantization.mixin:QuantizationMixin"
_CONVERSION = "transformers.core_model_loading:WeightConverter"
_QUANTIZER = "transformers.quantizers.base:HfQuantizer"
_REGISTRY = "transformers.quantizers.auto"

_MOE_ISSUE = "vllm-project/llm-compressor#3069"

# fmt: off
_PATCHED: tuple[Name, ...] = (
    _llm("llmcompressor.entrypoints.oneshot:Oneshot", "apply_recipe_modifiers", "(self, ...)",
         why="patched: hooks of a failed run go, lost zeros fail the run"),
    _llm("llmcompressor.entrypoints.oneshot", "get_calibration_dataloader",
         "(dataset_args, processor)",
         why="patched: takes rows that come with our Collator, and tells unused arguments"),
    _llm("llmcompressor.args:DatasetArguments", "num_calibration_samples", "",
         why="is not used for a DataLoader, which is told"),
    _llm("llmcompressor.entrypoints.oneshot:Oneshot", "model", "",
         why="the model of the run that is watched"),
    _llm(f"{_GPTQ}.base", "prepare_batch", "(batch, ...)",
         why="patched: the weights of a batch bring their masks along"),
    _llm(f"{_GPTQ}.base", "quantize_weight", "(weights, hessians, ...)",
         why="patched: pruned weights are quantized to zero"),
    _llm(f"{_GPTQ}.gptq_quantize", "apply_activation_ordering", "(weights, hessians, actorder)",
         why="patched while GPTQ solves: the masks follow the order of the columns"),
    _llm(f"{_GPTQ}.gptq_quantize", "column_scale_window", "(scale, *, i1, i2, ...)",
         why="patched while GPTQ solves: pruned weights get the coarsest scale"),
    _llm(_CACHE, "pin_memory", "(self, ...)",
         why="patched: AWQ pins memory where there is no accelerator, which raises"),
    _llm(_CACHE, "from_dataloader", "(dataloader, ...)",
         why="patched: every batch has the inputs of all"),
    _llm(_CACHE, "batch_intermediates", "", why="the batches that inputs are added to"),
    _llm(_CACHE, "offload_device", "", why="where added inputs are kept"),
    _llm(_CACHE, "_offload_value", "(value, offload_device)", why="adds the inputs"),
    _llm(_TRACER, "create_proxy", "(self, kind, target, ...)",
         why="patched: keeps what **kwargs reach"),
    _llm(_TRACER, "create_arg", "(self, a)",
         why="patched: keeps the model's own config and outputs in the graph"),
    _llm(_TRACER, "create_node", "(self, kind, target, args, kwargs)",
         why="puts calls for configs and outputs into the graph"),
    _llm(_TRACER, "patch_for_tracing", "(self, root)",
         why="patched: torch is restored where tracing raises"),
    _llm("llmcompressor.pipelines.sequential.pipeline", "trace_subgraphs",
         "(model, sample_input, ...)", why="patched: tracing sees the inputs of all batches"),
)

_REACHED: tuple[Name, ...] = (
    _llm("llmcompressor.core", "active_session", "()", why="the session of the run"),
    _llm("llmcompressor.core", "create_session", "()", why="the session of the dense pass"),
    _llm("llmcompressor.core.session:CompressionSession", "lifecycle", "",
         why="leads to the recipe"),
    _llm("llmcompressor.core.session:CompressionSession", "state", "", why="leads to the data"),
    _llm("llmcompressor.core.session:CompressionSession", "initialize",
         "(self, *, model, recipe, calib_data, copy_data)", why="starts the dense pass"),
    _llm("llmcompressor.core.session:CompressionSession", "finalize", "(self)",
         why="ends the dense pass"),
    _llm("llmcompressor.core.lifecycle:CompressionLifecycle", "recipe", "",
         why="the recipe of the run"),
    _llm("llmcompressor.recipe:Recipe", "modifiers", "", why="the other modifiers of the recipe"),
    _llm("llmcompressor.recipe:Recipe", "create_instance", "(path_or_modifiers)",
         why="reads recipes for tamp prune"),
    _llm("llmcompressor.core:State", "data", "", why="the calibration data"),
    _llm("llmcompressor.core:State", "current_batch_idx", "",
         why="the number of the batch that passes through"),
    _llm("llmcompressor.core.state:Data", "calib", "", why="the calibration data"),
    _llm("llmcompressor.modifiers.factory:ModifierFactory", "register",
         "(type_, modifier_class)", why="makes TAMPModifier known to recipes in YAML"),
    _llm("llmcompressor.modifiers.utils.hooks:HooksMixin", "disable_hooks", "()",
         why="compares logits without calibrating"),
    _llm("llmcompressor.modifiers.utils.hooks:HooksMixin", "_HOOKS_DISABLED", "",
         why="whether a pass only makes inputs of the next piece of the graph"),
    _llm(_SUBGRAPH, "forward", "(self, ...)", why="`WholeModel` stands in for it"),
    _llm(_SUBGRAPH, "submodules", "(self, model)", why="`WholeModel` stands in for it"),
    _llm("llmcompressor.utils.helpers", "calibration_forward_context", "(model)",
         why="compares a traced model with the model"),
    _llm("llmcompressor.pytorch.utils.helpers", "tensors_to_device", "(tensors, device)",
         why="compares a traced model with the model"),
    _llm("llmcompressor.modeling.moe.linearize", "get_non_linearized_moes", "(model)",
         why="a dry run counts experts as a run does"),
    _llm(_EXPERTS, "get_linear_experts_cls", "(experts_cls)",
         why="a dry run counts experts as a run does"),
    _llm(_EXPERTS, "from_experts_module", "(experts, config)",
         why="overridden: fused experts that llm-compressor does not know"),
    _llm("llmcompressor.modifiers.utils.hooks:HooksMixin", "remove_hooks", "(self)",
         why="clears up after a failed run"),
    _llm("llmcompressor.modifiers.utils.hooks:HooksMixin", "register_hook",
         "(self, target, hook, hook_type)", why="hooks the Linears"),
    _llm("llmcompressor.pipelines.registry:CalibrationPipeline", "load_from_registry", "(name)",
         why="runs the dense pass"),
    _llm("llmcompressor.args.dataset_arguments:DatasetArguments", "tracing_ignore", "",
         why="functions that tracing skips in the dense pass"),
    _llm("llmcompressor.modeling.moe.context", "get_calibrate_all_experts_flag", "()",
         why="whether experts see tokens that are not routed to them"),
    _llm(_EXPERTS, "_registry", "", why="the fused class behind a container", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "_source_experts_cls", "", why="the same", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "_source_config", "", why="makes the fused experts anew", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "num_experts", "", why="experts of a container", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "is_transposed", "", why="layout of fused tensors", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "is_concatenated", "", why="layout of fused tensors", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "has_bias", "", why="layout of fused tensors", issue=_MOE_ISSUE),
    _llm(_EXPERTS, "has_gate", "", why="layout of fused tensors", issue=_MOE_ISSUE),
    _llm("llmcompressor.modeling.moe.linear_experts:ExpertMLP", "copy_from_experts_module",
         "(self, experts, index)", why="proves that fused experts are read back as they were",
         issue=_MOE_ISSUE),
    _llm("llmcompressor.modeling.moe.gpt_oss", "GptOssExpertMLP", "",
         why="its gate and up rows take turns", issue=_MOE_ISSUE),
    _llm(_QUANTIZATION, "resolved_targets", "", why="whether a recipe quantizes experts"),
    _llm(_QUANTIZATION, "resolved_config", "", why="how a recipe quantizes experts"),
    _llm(_QUANTIZATION, "ignore", "", why="whether a recipe quantizes experts"),
    _llm("llmcompressor.utils.dev", "get_main_device", "()", why="the plan tells the device"),
)

_TENSORS: tuple[Name, ...] = (
    _tensors("compressed_tensors.utils", "patch_attr", "(base, attr, value)",
             why="patches GPTQ's solver while it runs"),
    _tensors("compressed_tensors.utils", "match_named_modules", "(model, targets, ignore)",
             why="whether a recipe quantizes experts"),
    _tensors("compressed_tensors.utils", "is_match", "(name, module, targets)",
             why="matches targets as llm-compressor does"),
    _tensors("compressed_tensors.utils", "align_module_device", "(module)",
             why="weights that are offloaded"),
    _tensors("compressed_tensors.utils", "update_offload_parameter", "(module, name, data)",
             why="weights that are offloaded"),
    _tensors("compressed_tensors.offload", "disable_onloading", "()",
             why="experts that are offloaded"),
    _tensors("compressed_tensors.offload", "get_cache_init_kwargs", "(module)",
             why="fused experts are offloaded as theirs were"),
    _tensors("compressed_tensors.offload", "offload_module", "(module, ...)",
             why="fused experts are offloaded as theirs were"),
    _tensors("compressed_tensors.offload", "get_execution_device", "(module)",
             why="where a module computes"),
    _tensors("compressed_tensors.offload.cache:OffloadCache", "offloading_disabled", "",
             why="a model that runs as a whole goes back to where it is kept, module by module"),
    _tensors("compressed_tensors.offload.cache", "CPUCache", "",
             why="whether processes share the memory of a weight"),
    _tensors("compressed_tensors.quantization.utils", "is_module_quantized", "(module)",
             why="quantized Linears"),
    _tensors("compressed_tensors.quantization.utils", "calculate_range",
             "(quantization_args, device)", why="whether a grid has an exact zero"),
    _tensors("compressed_tensors.distributed", "is_distributed", "()", why="several processes"),
    _tensors("compressed_tensors.distributed", "is_source_process", "()",
             why="the process that writes"),
    _tensors("compressed_tensors.distributed", "as_broadcastable", "(tensor)",
             why="hands pruned weights to the other processes"),
    _tensors("compressed_tensors.distributed", "greedy_bin_packing",
             "(items, num_bins, item_weight_fn)", why="shares Linears among processes"),
)

_TRANSFORMERS: tuple[Name, ...] = (
    _tf("transformers:PreTrainedModel", "save_pretrained", "(self, save_directory)",
        why="patched on the model that is pruned: completes config.json"),
    _tf("transformers.conversion_mapping", "get_model_conversion_mapping",
        "(model, *, add_legacy)", why="the names of an architecture's experts", issue=_MOE_ISSUE),
    _tf("transformers.core_model_loading", "revert_weight_conversion", "(model, state_dict)",
        why="save_pretrained reads model._weight_conversions there", issue=_MOE_ISSUE),
    _tf(_CONVERSION, "_original_source_patterns", "", why="names on disk", issue=_MOE_ISSUE),
    _tf(_CONVERSION, "_original_target_patterns", "", why="names in the model", issue=_MOE_ISSUE),
    _tf(_CONVERSION, "scope_prefix", "", why="passed on to the renaming", issue=_MOE_ISSUE),
    _tf(_CONVERSION, "base_model_prefix", "", why="passed on to the renaming", issue=_MOE_ISSUE),
    _tf("transformers.core_model_loading", "WeightRenaming",
        "(source_patterns, target_patterns)", why="names of single experts", issue=_MOE_ISSUE),
    _tf("transformers:AutoModelForImageTextToText", "_model_mapping", "",
        why="the class of a model, from its config"),
    _tf("transformers:AutoModelForCausalLM", "_model_mapping", "",
        why="the class of a model, from its config"),
)

VIDEOS: tuple[Name, ...] = (
    _tf("transformers.video_processing_utils", "BaseVideoProcessor", "",
        why="patched: transformers has a placeholder for it without torchvision"),
    _tf("transformers.image_processing_backends", "pil_torch_interpolation_mapping", "",
        why="set: the modes of interpolation"),
    _tf("transformers.image_processing_backends", "torch_pil_interpolation_mapping", "",
        why="set: the modes of interpolation"),
    _tf("transformers.models.auto.video_processing_auto", "AutoVideoProcessor", "",
        why="patched while a processor is loaded"),
    _tf("transformers.models.auto.video_processing_auto", "get_video_processor_config",
        "(pretrained_model_name_or_path)", why="which video processor a model has"),
    _tf("transformers.utils", "is_torchvision_available", "()", why="whether any of it is needed"),
)
"""What `upstream.videos` needs."""

QUANTIZERS: tuple[Name, ...] = (
    _tf(_REGISTRY, "AUTO_QUANTIZER_MAPPING", "", why="whether the quantizer is registered"),
    _tf(_REGISTRY, "register_quantizer", "(name)", why="registers it"),
    _tf(_REGISTRY, "register_quantization_config", "(method)", why="registers its config"),
    _tf(_QUANTIZER, "validate_environment", "(self, ...)", why="overridden: refuses"),
    _tf(_QUANTIZER, "preprocess_model", "(self, model, dtype, ...)", why="overridden: unpacks"),
    _tf(_QUANTIZER, "postprocess_model", "(self, model, ...)", why="overridden: checks"),
    _tf(_QUANTIZER, "remove_quantization_config", "(self, model)",
        why="leaves an ordinary model behind"),
    _tf(_QUANTIZER, "is_serializable", "(self)", why="overridden"),
    _tf(_QUANTIZER, "is_trainable", "", why="overridden"),
    _tf(_QUANTIZER, "pre_quantized", "", why="set: what is read is dense"),
)
"""What `transformers_plugin` needs to load packed checkpoints."""

LOGURU: tuple[Name, ...] = tuple(
    Name("loguru:logger._core", attribute, "", seen="0.7.3",
         why="hides sinks for a while: public functions only delete them")
    for attribute in ("handlers", "min_level", "lock")
)
"""What `upstream.sinks` needs."""
# fmt: on

LLM_COMPRESSOR: tuple[Name, ...] = _PATCHED + _REACHED + _TENSORS + _TRANSFORMERS
"""What pruning needs."""


def require_llm_compressor() -> None:
    """Check what pruning needs, once in a process if it is there.

    Raises:
        UpstreamChanged: names what is missing, the versions found and the versions tested.
    """
    require(LLM_COMPRESSOR)

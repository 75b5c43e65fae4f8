"""Everything of vLLM that the plugin relies on, checked by `vllm_plugin.register`.

One row a name; to follow a new version of vLLM, run ``tests/serving/test_plugin.py``: each row is a
test.
"""

from __future__ import annotations

from functools import partial

from tamp_modifier.upstream.check import Name

QUANTIZATION = "tamp_sparse"
"""The plugin's name in vLLM."""

_vllm = partial(Name, seen="0.32.0")

_LAYERS = "vllm.model_executor.layers"
_LINEAR = f"{_LAYERS}.linear"
_CONFIG = f"{_LAYERS}.quantization.base_config:QuantizationConfig"
_TENSORS = f"{_LAYERS}.quantization.compressed_tensors"
_TENSORS_CONFIG = f"{_TENSORS}.compressed_tensors:CompressedTensorsConfig"
_MAPPER = "vllm.model_executor.models.utils:WeightsMapper"
_MOE = f"{_LAYERS}.fused_moe"
_EXPERTS = f"{_MOE}:RoutedExperts"
_META = "vllm.model_executor.model_loader.reload.meta"

# fmt: off
VLLM: tuple[Name, ...] = (
    # How the plugin is found and asked.
    _vllm(f"{_LAYERS}.quantization", "QUANTIZATION_METHODS", "", why="whether it is registered"),
    _vllm(f"{_LAYERS}.quantization", "register_quantization_config", "(quantization)",
          why="registers the config"),
    _vllm(_CONFIG, "get_name", "", why="overridden"),
    _vllm(_CONFIG, "get_supported_act_dtypes", "", why="overridden"),
    _vllm(_CONFIG, "get_min_capability", "()", why="overridden"),
    _vllm(_CONFIG, "get_config_filenames", "()", why="overridden"),
    _vllm(_CONFIG, "from_config", "(config)", why="overridden: reads config.json"),
    _vllm(_CONFIG, "override_quantization_method", "(hf_quant_cfg, user_quant, hf_config)",
          why="overridden: recognises pruned checkpoints"),
    _vllm(_CONFIG, "maybe_update_config", "(self, model_name, hf_config, revision)",
          why="overridden: reads the marker and checks the files"),
    _vllm(_CONFIG, "apply_vllm_mapper", "(self, hf_to_vllm_mapper)",
          why="overridden: renames the listed Linears"),
    _vllm(_CONFIG, "get_quant_method", "(self, layer, prefix)",
          why="overridden: chooses the method of a layer"),
    _vllm(_CONFIG, "get_cache_scale_mapper", "()", why="overridden: asks the inner config"),
    _vllm(_CONFIG, "get_checkpoint_weight_mapper", "()",
          why="overridden: joins packed tensors while weights are read"),
    _vllm(_CONFIG, "packed_modules_mapping", "", why="which Linears are fused"),
    _vllm(f"{_LAYERS}.quantization.base_config", "QuantizeMethodBase", "", why="type of methods"),
    _vllm("vllm.config", "get_current_vllm_config", "()", why="the engine's settings"),
    _vllm("vllm.config:VllmConfig", "scheduler_config", "", why="numbers of rows to multiply"),
    _vllm("vllm.config:SchedulerConfig", "max_num_seqs", "", why="rows of decoding"),
    _vllm("vllm.config:SchedulerConfig", "max_num_batched_tokens", "", why="rows of prefill"),
    _vllm("vllm.platforms", "current_platform", "", why="GPUs keep vLLM's own quantized kernels"),
    _vllm("vllm.platforms.interface:Platform", "is_cpu", "(self)", why="the same"),
    _vllm("vllm.logger", "init_logger", "(name)", why="the line that tells what is sparse"),
    # Linears and what they are made of.
    _vllm(_LINEAR, "LinearBase", "", why="the layers that may be sparse"),
    _vllm(f"{_LINEAR}:LinearBase", "quant_method", "", why="set where a Linear stays dense"),
    _vllm(_LINEAR, "UnquantizedLinearMethod", "()", why="the method of dense Linears"),
    _vllm(f"{_LINEAR}:LinearMethodBase", "create_weights",
          "(self, layer, input_size_per_partition, output_partition_sizes, input_size, "
          "output_size, params_dtype, ...)", why="overridden: weights on the meta device"),
    _vllm(f"{_LINEAR}:LinearMethodBase", "apply", "(self, layer, x, bias)",
          why="overridden: multiplies with the packed weight"),
    _vllm(f"{_LINEAR}:LinearMethodBase", "process_weights_after_loading", "(self, layer)",
          why="overridden: checks that all has come"),
    _vllm(_LINEAR, "register_weight_loader_v2_supported_method", "(cls)",
          why="has vLLM load fused Linears part by part"),
    # Experts of MoE layers.
    _vllm(_MOE, "RoutedExperts", "", why="the experts that may be sparse"),
    _vllm(_EXPERTS, "moe_config", "", why="makes their method"),
    _vllm(_EXPERTS, "quant_method", "", why="set where experts stay dense"),
    _vllm(_EXPERTS, "activation", "", why="applied between the two products"),
    _vllm(_EXPERTS, "expert_map", "", why="which experts a rank has"),
    _vllm(_EXPERTS, "local_num_experts", "", why="how many experts a rank has"),
    _vllm(_EXPERTS, "global_num_experts", "", why="whether config.json lists all experts"),
    _vllm(_EXPERTS, "apply_router_weight_on_input", "", why="where the router's weights go"),
    _vllm(_EXPERTS, "weight_loader",
          "(self, param, loaded_weight, weight_name, shard_id, expert_id, return_success)",
          why="fills the experts of a layer"),
    _vllm(_EXPERTS, "_map_global_expert_id_to_local_expert_id", "(self, expert_id)",
          why="passes over the experts of other ranks"),
    _vllm(f"{_MOE}.activation", "MoEActivation", "", why="the activations of experts"),
    _vllm(_MOE, "FusedMoEMethodBase", "(moe)", why="subclassed: the method of sparse experts"),
    _vllm(f"{_MOE}:FusedMoEMethodBase", "create_weights", "(self, layer, ...)",
          why="overridden: experts on the meta device"),
    _vllm(f"{_MOE}:FusedMoEMethodBase", "apply",
          "(self, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input)",
          why="overridden: multiplies with the packed experts"),
    _vllm(f"{_MOE}:FusedMoEMethodBase", "get_fused_moe_quant_config", "(self, layer)",
          why="overridden: asks the method of dense experts"),
    _vllm(f"{_MOE}.config:FusedMoEConfig", "moe_parallel_config", "",
          why="how experts are spread over ranks"),
    _vllm(f"{_MOE}.config:FusedMoEConfig", "swiglu_limit", "", why="clamped experts stay dense"),
    _vllm(f"{_MOE}.config:FusedMoEConfig", "is_lora_enabled", "", why="leaves experts to LoRA"),
    _vllm(f"{_MOE}.config:FusedMoEParallelConfig", "use_all2all_kernels", "",
          why="experts spread by data parallelism stay dense"),
    _vllm(f"{_MOE}.unquantized_fused_moe_method", "UnquantizedFusedMoEMethod",
          "(moe)", why="the method of dense experts"),
    # How weights are read.
    _vllm(_META, "to_meta_tensor", "(tensor)", why="a weight without memory until it is read"),
    _vllm(_META, "materialize_meta_tensor", "(meta_tensor)", why="its memory, when it is read"),
    _vllm(_META, "get_numel_loaded", "(weight_loader, args)", why="whether a weight is whole"),
    _vllm("vllm.model_executor.models.utils", "WeightsMapper", "()", why="subclassed: joins"),
    _vllm(_MAPPER, "__or__", "(self, other)", why="overridden: joins renamings"),
    _vllm(_MAPPER, "apply", "(self, weights)", why="overridden: joins before renaming"),
    _vllm(_MAPPER, "apply_dict", "(self, values)", why="renames the listed Linears"),
    # Quantized checkpoints.
    _vllm(_TENSORS_CONFIG, "from_config", "(config)", why="the inner config"),
    _vllm(_TENSORS_CONFIG, "apply_vllm_mapper", "(self, hf_to_vllm_mapper)",
          why="the inner config renames its Linears"),
    _vllm(_TENSORS_CONFIG, "get_quant_method", "(self, layer, prefix)",
          why="the method of quantized Linears"),
    _vllm(f"{_TENSORS}.compressed_tensors", "CompressedTensorsLinearMethod", "",
          why="the method of quantized Linears"),
    _vllm(f"{_TENSORS}.schemes", "CompressedTensorsW8A8Fp8", "", why="FP8 stays packed"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsW8A8Fp8", "strategy", "",
          why="FP8 in blocks stays vLLM's own"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsW8A8Fp8", "fp8_linear", "",
          why="quantizes the inputs of FP8"),
    _vllm(f"{_TENSORS}.schemes", "CompressedTensorsW8A8Int8", "", why="INT8 stays packed"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsW8A8Int8", "strategy", "",
          why="what has a scale"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsW8A8Int8", "input_symmetric", "",
          why="whether the inputs have zero points"),
    _vllm(f"{_TENSORS}.schemes", "CompressedTensorsWNA16", "", why="INT4 stays packed"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsWNA16", "num_bits", "", why="whether it is INT4"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsWNA16", "strategy", "", why="what has a scale"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsWNA16", "group_size", "", why="the same"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsWNA16", "symmetric", "",
          why="whether the groups have zero points"),
    _vllm(f"{_TENSORS}.schemes:CompressedTensorsWNA16", "kernel", "",
          why="whether vLLM has a kernel of its own"),
    _vllm("vllm.model_executor.kernels.linear.mixed_precision.cpu", "CPUWNA16LinearKernel", "",
          why="the same"),
    _vllm(f"{_LAYERS}.quantization.utils.w8a8_utils", "convert_to_channelwise",
          "(weight_scale, logical_widths)", why="one scale per output channel"),
    _vllm("vllm._custom_ops", "onednn_scaled_int8_quant", "(input, scale, azp, symmetric)",
          why="quantizes the inputs of INT8"),
)
# fmt: on

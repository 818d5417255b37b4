"""Names of accelerate, FSDP and DeepSpeed mean what `hf_whittle.compat` takes them for.

Others of DeepSpeed: `tests/distillation/sharded_training.py`.
"""

import importlib

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from relying import relies_on
from torch import nn

from hf_whittle.compat.sharding import execution_device, forget_partitioning, not_partitioned


def test_offloaded_module_names_its_device():
    device = torch.device("cpu", 0)
    with relies_on("accelerate", "Module._hf_hook.execution_device"):
        assert execution_device(nn.Linear(1, 1)) == "cpu"
        assert execution_device(add_hook_to_module(nn.Linear(1, 1), AlignDevicesHook(device))) is device


@pytest.mark.slow
def test_a_teacher_is_sharded_without_an_optimizer(run_warm, tmp_path):
    script = """
        import sys
        import torch
        from accelerate import Accelerator, FullyShardedDataParallelPlugin
        from torch.distributed.tensor import DTensor
        from hf_whittle.compat.sharding import shard_with_fsdp2

        torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=0, world_size=1)
        accelerator = Accelerator(cpu=True)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)  # ignored on a CPU
        model = shard_with_fsdp2(accelerator, torch.nn.Linear(4, 4))
        print(all(isinstance(parameter, DTensor) for parameter in model.parameters()))
        torch.distributed.destroy_process_group()
    """
    with relies_on("accelerate", "utils.fsdp_utils.fsdp2_prepare_model"):
        assert run_warm(script, tmp_path) == "True\n"


@pytest.mark.slow
def test_shards_of_fsdp1_bear_marks(run_warm, tmp_path):
    script = """
        import sys
        import torch
        from torch.distributed.fsdp import FullyShardedDataParallel
        from hf_whittle.compat.sharding import FSDP1_MARK, SHARD_ATTRIBUTES

        torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=0, world_size=1)
        plain = torch.nn.Linear(4, 4)
        for keeps in (True, False):
            cpu = torch.device("cpu")
            sharded = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=cpu, use_orig_params=keeps)
            marks = [name for name in SHARD_ATTRIBUTES for p in sharded.parameters() if hasattr(p, name)]
            print(marks, any(hasattr(module, FSDP1_MARK) for module in sharded.modules()))
        print([name for name in (*SHARD_ATTRIBUTES, FSDP1_MARK) if hasattr(plain.weight, name)])
        torch.distributed.destroy_process_group()
    """
    with relies_on("torch", "FlatParameter._is_flat_param and _fsdp_use_orig_params of modules"):
        assert run_warm(script, tmp_path) == "[] True\n['_is_flat_param'] True\n[]\n"


def test_models_are_partitioned_by_a_configuration_that_is_not_forgotten():
    name = "transformers.integrations.deepspeed"
    with relies_on("transformers", f"{name}._hf_deepspeed_config_weak_ref and unset_hf_deepspeed_config"):
        deepspeed = importlib.import_module(name)
        settings = type("Settings", (), {"is_zero3": lambda self: True})()  # as training arguments hold it
        deepspeed.set_hf_deepspeed_config(settings)
        with not_partitioned():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
        forget_partitioning()
        assert not deepspeed.is_deepspeed_zero3_enabled()

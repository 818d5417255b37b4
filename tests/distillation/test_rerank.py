"""rerank: probes are trainings of the extracted students, on disk as they are done."""

import copy
import json
import re

import pytest
from fixtures_training import BIN, make_blocks, make_supernet
from scipy.stats import kendalltau
from transformers import set_seed

import hf_whittle.distillation.rerank
from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    RandomSearchConfig,
    SearchSpace,
    extract_subnet,
    rerank,
    search_subnets,
)
from hf_whittle.errors import OutputError


@pytest.fixture(scope="module")
def trained_supernet():
    return make_supernet(hidden_dropout=0.0)


@pytest.fixture(scope="module")
def found(trained_supernet):
    space = SearchSpace.from_config(trained_supernet.config, layer_wise=True)
    config = RandomSearchConfig(evaluations=12)
    return search_subnets(
        trained_supernet, space, bin=BIN, eval_dataset=make_blocks(6, seed=2), config=config, progress=False
    )


def arguments(folder, **changes):
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}
    return DistillationConfig(output_dir=str(folder), report_to="none", **{**settings, **changes})


def ranked(supernet, found, args, **options):
    options = {"top_k": 4, "progress": False, **options}
    return rerank(supernet, found, args, make_blocks(), make_blocks(8, seed=1), **options)


def test_probes_are_trainings_of_the_best_students_in_the_order_of_what_they_reach(trained_supernet, found, tmp_path):
    reranking = ranked(trained_supernet, found, arguments(tmp_path))
    expected = {}
    for subnet in found.top(4):
        set_seed(42)
        trainer = DistillationTrainer(
            model=extract_subnet(trained_supernet, subnet),
            teacher_model=copy.deepcopy(trained_supernet),
            args=arguments(tmp_path / "by hand", disable_tqdm=True),
            train_dataset=make_blocks(),
            eval_dataset=make_blocks(8, seed=1),
        )
        trainer.train()
        expected[subnet] = trainer.evaluate()["eval_perplexity"]
    assert {probe.subnet: probe.perplexity for probe in reranking.probes} == expected
    reached = [probe.perplexity for probe in reranking.probes]
    assert reached == sorted(reached)
    assert reranking.best == reranking.probes[0].subnet
    before = [probe.fitness for probe in reranking.probes]
    assert reranking.kendall_tau == pytest.approx(kendalltau(before, range(4)).statistic)
    assert -1 <= reranking.spearman_rho <= 1
    assert reranking.tokens == 4 * 3 * 4 * 16


def test_super_network_trains_on_after_it(trained_supernet, found, tmp_path):
    supernet = copy.deepcopy(trained_supernet).train()
    ranked(supernet, found, arguments(tmp_path))
    assert all(parameter.requires_grad for parameter in supernet.parameters())
    assert all(module.training for module in supernet.modules())


def test_interrupted_reranking_goes_on_with_the_probes_that_are_left(trained_supernet, found, tmp_path):
    whole = ranked(trained_supernet, found, arguments(tmp_path / "whole"))
    ranked(trained_supernet, found, arguments(tmp_path), top_k=2)
    path = tmp_path / "rerank.json"
    marked = json.loads(path.read_text())
    for probe in marked["probes"].values():
        probe["tokens"] = 0
    path.write_text(json.dumps(marked))
    resumed = ranked(trained_supernet, found, arguments(tmp_path))
    assert resumed.probes == whole.probes
    assert resumed.tokens == 2 * 3 * 4 * 16


def test_folder_of_other_probes_is_an_error(trained_supernet, found, tmp_path):
    ranked(trained_supernet, found, arguments(tmp_path), top_k=2)
    with pytest.raises(OutputError, match=r"rerank\.json holds probes of another model, text or training"):
        ranked(trained_supernet, found, arguments(tmp_path, learning_rate=2e-2), top_k=2)


@pytest.mark.parametrize(("options", "message"), [
    ({"top_k": 1}, "top_k must be at least 2, since a single subnet has no rank; got 1"),
])  # fmt: skip
def test_bad_options_are_errors(trained_supernet, found, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ranked(trained_supernet, found, arguments(tmp_path), **options)


def test_probes_need_a_number_of_steps(trained_supernet, found, tmp_path):
    with pytest.raises(ValueError, match="max_steps says how many steps a probe takes"):
        ranked(trained_supernet, found, arguments(tmp_path, max_steps=-1))


def test_a_folder_that_is_written_already_is_an_error_before_any_probe(
    trained_supernet, found, tmp_path, run_python, monkeypatch
):
    script = """
        import sys
        from hf_whittle.files.locks import folder_lock
        with folder_lock(sys.argv[1]):
            pass
    """
    probe, held = hf_whittle.distillation.rerank._probe, []

    def during(*args):
        with pytest.raises(AssertionError, match="is being written by another process"):
            run_python(script, tmp_path)
        held.append(True)
        return probe(*args)

    monkeypatch.setattr(hf_whittle.distillation.rerank, "_probe", during)
    ranked(trained_supernet, found, arguments(tmp_path, max_steps=1), top_k=2)
    assert len(held) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"could not write .*in the way"):
        ranked(trained_supernet, found, arguments(tmp_path / "file" / "out"))

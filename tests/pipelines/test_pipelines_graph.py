"""Pipelines whose transformer's calls are recorded and replayed. Recordings are made as in tests/test_graph.py."""

import pytest
from calls import arguments, array, error, expected, shared
from test_graph import record, watch

from dit_usp.calls import slot_of
from dit_usp.graph import CallGraph, graph_of


def run_again(call):
    """For calls with collectives, of which the operators alone cannot be replayed on gloo: Python runs again."""
    output = call()

    def replay():
        for old, new in zip(output, call(), strict=True):
            old.copy_(new)

    return replay, output


STEPS = {"num_inference_steps": 6}


def replayed(name, path, degrees):
    """The second of two calls on a rank, what became of the transformer's calls; then the ranks disagree."""
    with shared(name, path, degrees) as pipe:
        transformer, mesh = pipe.transformer, pipe.mesh
        slot, groups = slot_of(transformer), [mesh.sequence, mesh.cfg]
        slot._compiled_call_impl = CallGraph(transformer, groups if slot is transformer else groups[:1], True, run_again, watch())
        for _ in range(2):
            output = pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}))
        report = graph_of(transformer).report()
        made = array(next(iter(vars(output).values())))
        weight = next((pipe.text_encoder_2 if name == "FluxPipeline" else pipe.text_encoder).parameters())
        kept = weight.clone()
        weight.data += mesh.sequence.rank() + mesh.cfg.rank()
        try:
            with pytest.raises(ValueError, match="different weights"):
                pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}))
        finally:
            weight.data.copy_(kept)  # later tests use these weights
    return made, report


@pytest.mark.parametrize(("name", "degrees"), [("FluxPipeline", (2, 1)), ("PixArtSigmaPipeline", (1, 1, 2)), ("ChromaPipeline", (1, 1, 2))])
def test_replays_make_the_same_picture(ranks, folder, name, degrees):
    (out, report), (nothing, _) = ranks(2, replayed, name, folder(name), degrees)
    assert error(out, expected(name, folder(name), **STEPS)) <= 1e-5
    assert nothing is None
    assert report == ["replayed"]


def changed(name, path):
    """How far a replaying pipeline is from diffusers' after what its call takes from the model has changed."""
    errors = []
    with shared(name, path, (1,)) as pipe:
        pipe.transformer._compiled_call_impl = CallGraph(pipe.transformer, [], True, record, watch())
        for layer in ("blocks.0", "blocks.0", "blocks.1"):
            pipe.set_pag_applied_layers(layer)
            call = arguments(name, {"seeds": 5, "output_type": "latent", **STEPS})
            replayed = array(pipe(**call)[0])
            report = graph_of(pipe.transformer).report()
            ungraphed, pipe.transformer._compiled_call_impl = pipe.transformer._compiled_call_impl, None
            wanted = array(pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}))[0])
            pipe.transformer._compiled_call_impl = ungraphed
            errors.append(error(replayed, wanted))
    return max(errors), report


def test_what_a_call_sets_on_the_model_is_seen(ranks, folder):
    """Perturbed attention: the pipeline puts processors on and takes them off within its call."""
    name = "PixArtSigmaPAGPipeline"
    ((worst, report),) = ranks(1, changed, name, folder(name))
    assert worst <= 1e-5
    assert "replayed" in report


def watched_by_a_callback(name, path):
    with shared(name, path, (1,)) as pipe:
        pipe.transformer._compiled_call_impl = CallGraph(pipe.transformer, [], True, record, watch())
        pipe(**arguments(name, {"seeds": 5, "output_type": "latent", **STEPS}), callback_on_step_end=lambda pipe, step, time, kept: kept)
        return graph_of(pipe.transformer).report()


def test_with_a_callback_nothing_is_replayed(ranks, folder):
    assert ranks(1, watched_by_a_callback, "FluxPipeline", folder("FluxPipeline")) == [["a callback may change the model between its steps"]]
